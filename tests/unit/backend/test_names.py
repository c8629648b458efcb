"""The names of a backend's guest: what it asked for, and this host's files."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from typing import TYPE_CHECKING

import dns.message
import dns.rcode

from xensock.backend.names import GuestNames
from xensock.policy.policy import Policy
from xensock.stack.resolver import Resolver

if TYPE_CHECKING:
    from pathlib import Path

    from xensock.calls.record import Record


def made(tmp_path: Path, *deny: str) -> tuple[GuestNames, list[Record]]:
    (tmp_path / "hosts").write_text("192.0.2.7 web.test\n")
    (tmp_path / "resolv.conf").write_text("")
    (tmp_path / "nsswitch.conf").write_text("hosts: files\n")
    paths = [str(tmp_path / name) for name in ("resolv.conf", "hosts", "nsswitch.conf")]
    records: list[Record] = []
    policy = Policy.parse(deny=deny)
    return GuestNames("guest", Resolver(*paths), policy, records.append), records


def ask(names: GuestNames, name: str) -> dns.message.Message:
    message = dns.message.make_query(name, "A").to_wire()
    answer = asyncio.run(names.answer(message, None, datagram=True))
    assert answer is not None
    return dns.message.from_wire(answer)


def test_a_name_of_the_hosts_file_is_answered_and_learnt(tmp_path: Path) -> None:
    names, records = made(tmp_path)
    assert ask(names, "web.test").answer[0][0].to_text() == "192.0.2.7"
    assert names.names.of(ip_address("192.0.2.7")) == ("web.test",)
    assert [(r.guest, r.verb, r.target, r.decision) for r in records] == [
        ("guest", "resolve", "web.test", "allow")
    ]


def test_the_hosts_file_names_addresses_that_nobody_asked_for(tmp_path: Path) -> None:
    names, _ = made(tmp_path)
    assert names.names_of(ip_address("192.0.2.7")) == ("web.test",)
    assert names.names_of(ip_address("192.0.2.8")) == ()


def test_a_refused_name_does_not_exist(tmp_path: Path) -> None:
    names, records = made(tmp_path, "web.test")
    assert ask(names, "web.test").rcode() == dns.rcode.NXDOMAIN
    assert records[0].decision == "deny"
