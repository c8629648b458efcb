"""A guest whose calls another backend decides."""

from __future__ import annotations

import errno
from ipaddress import ip_address

from xensock.calls.call import Protocol
from xensock.policy.deferred import Deferred


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
