"""A closed gate refuses everything, an open one nothing, and nothing is cached behind it."""

from __future__ import annotations

import errno
from ipaddress import ip_address

from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol
from xensock.policy.point import Point
from xensock.policy.policy import Policy

CLOSED = Decision(False, "closed", errno.EACCES, cacheable=False)
END = Endpoint(ip_address("198.51.100.7"), 8080)


def test_calls_and_names() -> None:
    state: list[Decision | None] = [None]
    policy = Policy.parse(["198.51.100.7", "listen:any"])
    point = Point("g", policy, lambda address: (), None, gate=lambda: state[0])
    allowed = point.connect(Protocol.TCP, END)
    assert (allowed.allowed, allowed.cacheable) == (True, False)
    assert point.listen(Protocol.TCP, END).allowed
    assert point.resolve("web.test").allowed
    state[0] = CLOSED
    assert point.connect(Protocol.TCP, END) is CLOSED
    assert point.listen(Protocol.TCP, END) is CLOSED
    assert point.resolve("web.test") is CLOSED
