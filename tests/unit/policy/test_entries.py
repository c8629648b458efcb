"""Which of two rules is the more specific."""

from __future__ import annotations

import os
from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest

from xensock.calls import Protocol, Subject
from xensock.policy.entries import ONE_HOST, Entry, Terms, network_rank, wild_rank
from xensock.policy.rules import parse_rule

if TYPE_CHECKING:
    from pathlib import Path

TCP, UDP = Protocol.TCP, Protocol.UDP


def entry(text: str, allow: bool = True, order: int = 0, **terms: object) -> Entry:
    return Entry(parse_rule(text), Terms(allow, **terms), order)  # type: ignore[arg-type]


def test_hosts() -> None:
    order = [
        network_rank(ip_network("10.0.0.5/32")),
        wild_rank(".a.web.test"),
        wild_rank(".web.test"),
        wild_rank(".test"),
        network_rank(ip_network("10.0.0.4/31")),
        network_rank(ip_network("10.0.0.0/8")),
        network_rank(ip_network("0.0.0.0/0")),
    ]
    assert order == sorted(order, reverse=True)
    assert len(set(order)) == len(order)
    assert order[0] == ONE_HOST == network_rank(ip_network("::1/128"))
    # What a NAT64 gateway (RFC 6052) makes of an IPv4 network is as specific as that.
    assert network_rank(ip_network("64:ff9b::/96")) == network_rank(ip_network("0.0.0.0/0"))


def test_what_is_not_the_host() -> None:
    order = [
        entry("web.test:80/tcp", False, programs=("/a",), labels={"a": "b"}),
        entry("web.test:80/tcp", programs=("/a",), labels={"a": "b"}),
        entry("web.test:80/tcp", programs=("/a",)),
        entry("web.test:80/tcp", programs=("/*",), labels={"a": "b"}),
        entry("web.test:80/tcp", labels={"a": "b", "c": "d"}),
        entry("web.test:80/tcp", labels={"a": "b"}),
        entry("web.test:80/tcp"),
        entry("web.test:80", False, 1),
        entry("web.test:80", False, 2),
        entry("web.test:80", True, 1),
        entry("web.test:80", True, 2),
        entry("web.test:80-90/tcp"),
        entry("web.test"),
    ]
    assert order == sorted(order, key=lambda each: each.key, reverse=True)


@pytest.mark.parametrize(
    ("programs", "path", "matches"),
    [
        ((), "", True),
        ((), "/bin/x", True),
        (("/bin/x",), "/bin/x", True),
        (("/bin/x",), "", False),
        (("/bin/x",), "/bin/xy", False),
        (("/bin/x", "/opt/*"), "/opt/a/b", True),
        (("*/git",), "/usr/bin/git", True),
        (("*/git",), "/usr/bin/git2", False),
        (("/a.b",), "/axb", False),
        (("/a\nb",), "/a\nb", True),
    ],
)
def test_programs(programs: tuple[str, ...], path: str, matches: bool) -> None:
    assert entry("any:80", programs=programs).takes(TCP, 80, path) is matches


def test_a_link_means_what_it_leads_to(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/bin/sh")
    rule = entry("any", programs=(str(link),))
    assert rule.takes(TCP, 80, str(link))
    assert rule.takes(TCP, 80, os.path.realpath("/bin/sh"))


def test_calls() -> None:
    rule = entry("any:80-90/udp", labels={"a": "b"})
    assert rule.takes(UDP, 80, "")
    assert not rule.takes(UDP, 91, "")
    assert not rule.takes(TCP, 80, "")
    assert rule.suits(UDP, 80, Subject(labels={"a": "b", "c": "d"}))
    assert not rule.suits(UDP, 80, Subject(labels={"a": "c"}))


def test_decisions_are_made_once() -> None:
    wild = entry("*.web.test:80", source="p.toml:3")
    first = wild.by_name("a.web.test")
    assert first is wild.by_name("a.web.test")
    assert (first.name, first.cacheable, first.source) == ("a.web.test", False, "p.toml:3")
    for number in range(1000):
        assert wild.by_name(f"{number}.web.test").name == f"{number}.web.test"
    assert entry("web.test").by_name("web.test").name == "web.test"
    assert entry("10.0.0.0/8").always.cacheable
    assert not entry("10.0.0.0/8", programs=("/a",)).always.cacheable
    assert not entry("10.0.0.0/8", via=("vpn",)).always.cacheable
