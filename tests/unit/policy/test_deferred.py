"""A guest whose calls another backend decides."""

from __future__ import annotations

import errno
from ipaddress import ip_address

from xensock.calls.call import Protocol
from xensock.policy.deferred import Deferred
from xensock.policy.routes import Route, Routes


def test_everything_is_left_to_the_backend() -> None:
    policy = Deferred("the backend")
    for host in ("198.51.100.7", "10.0.0.1", "169.254.169.254", "2001:db8::1"):
        decision = policy.connect(Protocol.TCP, ip_address(host), 80)
        assert decision.allowed
        assert decision.rule == "left to the backend"
        assert not decision.cacheable
    assert policy.listen(Protocol.TCP, ip_address("0.0.0.0"), 80).allowed
    assert policy.resolve("www.example").allowed


def test_loopback_is_the_guests_own() -> None:
    for host in ("127.0.0.1", "::1"):
        decision = Deferred("x").connect(Protocol.TCP, ip_address(host), 5432)
        assert not decision.allowed
        assert decision.error == errno.EACCES


def test_what_stays_on_this_host_is_decided_here() -> None:
    texts = ("metadata=host", "*.corp.example=host", "any:25=mail")
    policy = Deferred("the backends", Routes(tuple(map(Route.parse, texts)), "mail"))
    assert policy.names_needed
    metadata, link = ip_address("169.254.169.254"), ip_address("169.254.1.1")
    assert policy.connect(Protocol.TCP, metadata, 80).rule == "default: metadata service"
    assert policy.connect(Protocol.TCP, link, 80).allowed
    assert not policy.connect(Protocol.TCP, link, 80, ["git.corp.example"]).allowed
    public = ip_address("198.51.100.7")
    decision = policy.connect(Protocol.TCP, public, 443, ["git.corp.example"])
    assert decision.rule == "default: public addresses"
    assert policy.connect(Protocol.TCP, public, 25).rule == "left to the backends"


def test_udp_ports_are_this_hosts() -> None:
    policy, host = Deferred("x"), ip_address("0.0.0.0")
    assert policy.listen(Protocol.TCP, host, 80).allowed
    assert not policy.listen(Protocol.UDP, host, 80).allowed
    assert policy.listen(Protocol.UDP, host, 8000).rule == "default: ports from 1024"
