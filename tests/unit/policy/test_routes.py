"""The guest's ordered table of routes."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from xensock.calls.call import Protocol
from xensock.policy.routes import Route, Routes
from xensock.policy.rules import RuleError


def table(*texts: str, default: str = "backend") -> Routes:
    return Routes(tuple(Route.parse(text) for text in texts), default)


def carried(routes: Routes, host: str, port: int = 80, *names: str) -> str:
    return routes.of(Protocol.TCP, ip_address(host), port, names)


def test_the_first_match_wins() -> None:
    routes = table("10.1.0.0/16=office", "10.0.0.0/8=vpn", "any:25=mail")
    assert carried(routes, "10.1.2.3") == "office"
    assert carried(routes, "10.2.2.3") == "vpn"
    assert carried(routes, "198.51.100.7", 25) == "mail"
    assert carried(routes, "10.1.2.3", 25) == "office"
    assert carried(routes, "198.51.100.7") == "backend"


def test_ports_protocols_and_forms_of_an_address_are_looked_at() -> None:
    routes = table("192.0.2.0/24:8000-8080/tcp=a", "192.0.2.0/24/udp=b")
    assert carried(routes, "192.0.2.1", 8000) == "a"
    assert carried(routes, "::ffff:192.0.2.1", 8080) == "a"
    assert carried(routes, "192.0.2.1", 80) == "backend"
    assert routes.of(Protocol.UDP, ip_address("192.0.2.1"), 80) == "b"


def test_names_choose_connections_and_questions() -> None:
    routes = table("*.corp.example=vpn", "db.example:5432=host")
    assert carried(routes, "198.51.100.7", 443, "git.corp.example") == "vpn"
    assert carried(routes, "198.51.100.7", 5432, "db.example") == "host"
    assert carried(routes, "198.51.100.7", 443, "db.example") == "backend"
    assert routes.of_name("GIT.corp.example.") == "vpn"
    assert routes.of_name("db.example") == "host"
    assert routes.of_name("www.example") == "backend"


@pytest.mark.parametrize(
    "text", ["10.0.0.0/8", "=vpn", "10.0.0.0/8=", "nonsense//=x", "listen:any=x", "unix:/x=a"]
)
def test_what_is_no_route(text: str) -> None:
    with pytest.raises(RuleError) as caught:
        Route.parse(text)
    assert caught.value.hint
