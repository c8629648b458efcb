"""A guest whose calls another backend decides."""

from __future__ import annotations

from ipaddress import ip_address

from xensock.calls.call import Decision, Protocol
from xensock.policy.deferred import Deferred, final, left_to
from xensock.policy.routes import Route, Routes


def deferred(*routes: str) -> Deferred:
    return Deferred(Routes(tuple(map(Route.parse, routes)), "vpn"))


def test_everything_is_left_to_the_backend() -> None:
    policy = deferred()
    for host in ("198.51.100.7", "10.0.0.1", "169.254.169.254", "2001:db8::1", "127.0.0.1", "::1"):
        decision = policy.connect(Protocol.TCP, ip_address(host), 80)
        assert decision.allowed
        assert decision.rule == "left to vpn"
        assert not decision.cacheable
    assert policy.listen(Protocol.TCP, ip_address("0.0.0.0"), 80).rule == "left to vpn"
    assert policy.resolve("www.example").rule == "left to vpn"


def test_what_stays_on_this_host_is_decided_here() -> None:
    policy = deferred("metadata=host", "*.corp.example=host", "any:25=mail")
    assert policy.names_needed
    metadata, link = ip_address("169.254.169.254"), ip_address("169.254.1.1")
    assert policy.connect(Protocol.TCP, metadata, 80).rule == "default: metadata service"
    assert policy.connect(Protocol.TCP, link, 80).rule == "left to vpn"
    assert not policy.connect(Protocol.TCP, link, 80, ["git.corp.example"]).allowed
    public = ip_address("198.51.100.7")
    decision = policy.connect(Protocol.TCP, public, 443, ["git.corp.example"])
    assert decision.rule == "default: public addresses"
    assert policy.connect(Protocol.TCP, public, 25).rule == "left to mail"
    assert policy.resolve("git.corp.example").rule == "default: names resolve"


def test_routes_by_name_need_names() -> None:
    assert not deferred("10.0.0.0/8=host").names_needed
    assert deferred("*.home.example=host").names_needed


def test_ports_are_the_default_backends() -> None:
    policy, host = deferred("any=mail"), ip_address("0.0.0.0")
    for protocol in (Protocol.TCP, Protocol.UDP):
        assert policy.listen(protocol, host, 80).rule == "left to vpn"


def test_whose_word_is_final() -> None:
    ours, theirs = Decision(True, "ours"), Decision(True, "theirs")
    refused = Decision(False, "theirs", 13)
    assert final(left_to("vpn"), theirs) == theirs
    assert final(left_to("vpn"), None) == left_to("vpn")
    assert final(ours, theirs) == ours
    assert final(ours, refused) == refused
