"""Rules about sockets in the host's file system."""

from __future__ import annotations

import errno

import pytest

from xensock.policy.policy import Policy
from xensock.policy.rules import RuleError
from xensock.policy.unix import UnixRules, is_unix, parse_unix


def test_a_path_opens_only_to_a_rule_that_names_it() -> None:
    policy = Policy.parse(["unix:/run/app.sock"])
    assert policy.unix("/run/app.sock").allowed
    other = policy.unix("/run/other.sock")
    assert (other.allowed, other.error) == (False, errno.EACCES)
    assert other.hint == "--allow unix:/run/other.sock"
    assert not Policy.parse(["any"]).unix("/run/app.sock").allowed


def test_deny_wins_and_says_how_to_get_rid_of_it() -> None:
    decision = UnixRules(["/run/a"], ["/run/a"]).connect("/run/a")
    assert not decision.allowed
    assert decision.hint == "remove --deny unix:/run/a"


def test_rules_about_paths_say_nothing_about_hosts() -> None:
    from ipaddress import ip_address

    from xensock.calls.call import Protocol

    policy = Policy.parse(["unix:/run/app.sock"])
    assert policy.connect(Protocol.TCP, ip_address("192.0.2.1"), 80).allowed


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("unix:run/app.sock", "unix:/run/app.sock"),
        ("unix:", "unix:/run/app.sock"),
        ("unix:/run/../etc/app.sock", "write unix:/etc/app.sock"),
        ("unix:/run/app.sock/", "write unix:/run/app.sock"),
        ("unix:/" + 200 * "a", "at most 107 bytes"),
        ("unix:/run/\x1b[31m", "under another name"),
    ],
)
def test_wrong_paths_have_a_hint(text: str, hint: str) -> None:
    assert is_unix(text)
    with pytest.raises(RuleError) as error:
        parse_unix(text)
    assert hint in error.value.hint
