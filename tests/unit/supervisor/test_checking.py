"""Which names satisfy a rule that verifies, and what its refusals say."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest

from xensock.calls.address import Endpoint
from xensock.calls.call import Protocol
from xensock.policy.entries import Terms
from xensock.policy.names import Names
from xensock.policy.point import Point
from xensock.policy.policy import Policy
from xensock.policy.rules import parse_rule
from xensock.supervisor.checking import named, wrong

END = Endpoint(ip_address("192.0.2.1"), 443)


def point(*rules: str) -> Point:
    terms = Terms(True, verify="sni", source="p.toml:3")
    names = Names()
    names.learn("a.web.test", [END.host], 60)
    return Point("guest", Policy([(parse_rule(r), terms) for r in rules]), names.of, None)


@pytest.mark.parametrize(
    ("rules", "host", "right"),
    [
        (["a.web.test:443"], "a.web.test", True),
        (["a.web.test:443"], "b.web.test", False),
        (["*.web.test"], "a.web.test", True),
        (["*.web.test"], "b.web.test", True),
        (["*.web.test"], "web.test", False),
        (["*.web.test"], "b.web.test.evil.test", False),
        # Another rule's name is not this rule's.
        (["a.web.test", "evil.test"], "evil.test", False),
        (["*.web.test", "b.web.test:80"], "b.web.test", True),
        (["*.web.test", "b.web.test"], "b.web.test", False),
    ],
)
def test_the_host_is_the_rules(rules: list[str], host: str, right: bool) -> None:
    at = point(*rules)
    decision = at.connect(Protocol.TCP, END)
    assert (decision.verify, decision.needs_relay) == ("sni", True)
    assert named(at, END, decision, host, 0) is right


def test_a_refusal_says_why_and_what_to_do() -> None:
    decision = point("a.web.test").connect(Protocol.TCP, END)
    refused = wrong(decision, "they name evil.test")
    assert (refused.allowed, refused.error) == (False, errno.ECONNRESET)
    assert refused.rule == "verify of a.web.test: they name evil.test"
    assert refused.hint == "name a.web.test, or leave verify out of the rule at p.toml:3"
