"""Which addresses a rule by name may learn."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from xensock.policy.policy import Policy


@pytest.mark.parametrize(
    ("rule", "address", "allowed"),
    [
        ("private", "10.1.2.3", True),
        ("private:80", "10.1.2.3", True),
        ("10.1.0.0/16", "10.1.2.3", True),
        ("10.1.0.0/16", "10.2.2.3", False),
        ("any:443", "10.1.2.3", True),
        ("any:443", "127.0.0.1", False),
        ("loopback:443", "127.0.0.1", True),
        ("127.0.0.1:443", "127.0.0.1", True),
        ("linklocal", "169.254.7.7", True),
        ("linklocal", "169.254.169.254", False),
        ("metadata", "169.254.169.254", True),
        ("public", "10.1.2.3", False),
        ("listen:any", "10.1.2.3", False),
    ],
)
def test_a_rule_by_address_says_otherwise(rule: str, address: str, allowed: bool) -> None:
    policy = Policy.parse(allow=["web.test:443", rule])
    decision = policy.answer("web.test", ip_address(address))
    assert decision.allowed is allowed
    assert decision.name == "web.test"
    assert policy.answer("web.test", ip_address("192.0.2.1")).allowed


@pytest.mark.parametrize("address", ["10.1.2.3", "127.0.0.1", "fd00::7", "224.0.0.1", "fe80::1"])
def test_the_hint_is_a_rule_that_allows_the_address(address: str) -> None:
    why = Policy.parse(allow=["web.test"]).answer("Web.Test.", ip_address(address))
    assert not why.allowed
    assert why.rule.startswith(f"default: web.test has {address}, which is ")
    policy = Policy.parse(allow=["web.test", why.hint.removeprefix("--allow ")])
    assert policy.answer("web.test", ip_address(address)).allowed
