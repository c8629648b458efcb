"""Containers of one group: they know each other by name, and reach each other without a bridge.

Every member has an address that means it to its group alone (240.88.0.0/16: nobody on the Internet has one, RFC 1112).
A connect there is redirected to the member's own listener on this host, and refused as by a kernel where it has none:
nothing else of the host is reached that way. Ports that a member keeps from the world (`xensock.listen=published`) are
at an address of its own on the host's loopback.
"""

from __future__ import annotations

import errno
import os
import threading
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol
from xensock.stack import resolver_wire as wire
from xensock.supervisor.diag import open_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.address import IPAddress
    from xensock.stack.resolver import Resolver
    from xensock.supervisor.publication import Publication

MEMBERS = int(IPv4Address("240.88.0.0"))
MOST = 65534
TTL = 5  # seconds: a container that is started anew has another address


@dataclass(slots=True, eq=False)
class Member:
    """One container. `listens`: whether the host's socket of this cookie is its listener; None before it runs."""

    groups: Groups
    group: str
    names: frozenset[str]
    number: int
    listens: Callable[[int], bool] | None = None
    published: tuple[Publication, ...] = ()

    @property
    def address(self) -> IPv4Address:
        """What its group knows it by."""
        return IPv4Address(MEMBERS + self.number)

    @property
    def inner(self) -> IPv4Address:
        """Where the host's loopback has it."""
        return IPv4Address((127 << 24) + (64 + os.geteuid() % 128 << 16) + self.number)

    def find(self, name: str) -> list[IPv4Address]:
        """The members of its group with that name."""
        return self.groups.find(self.group, name)

    def faces(self, port: int) -> list[Endpoint]:
        """Where on this host its port may be found."""
        mapped = [p for p in self.published if p.guest_port == port and p.protocol == Protocol.TCP]
        return [
            Endpoint(self.inner, port),
            *(Endpoint(p.host or self.inner, p.port) for p in mapped),
        ]

    def connect(self, protocol: Protocol, end: Endpoint) -> Decision | None:
        """What becomes of its connect, if that is to a member of a group."""
        if int(end.host) >> 16 != MEMBERS >> 16 or end.host.version != 4:
            return None
        return self.groups.connect(self, protocol, end)

    def leave(self) -> None:
        self.groups.leave(self)


class Groups:
    """All groups of a backend. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._members: dict[int, Member] = {}
        self._lock = threading.Lock()
        self._host = open_host()

    def close(self) -> None:
        self._host.close()

    def join(self, group: str, names: frozenset[str], had: int = 0) -> Member:
        """A member, to `leave`; `group` "" is a group of its own; `had`: its number at a backend before this one.
        Raises OSError (ENOSPC)."""
        with self._lock:
            number = had if 0 < had < MOST and had not in self._members else 0
            number = number or next((n for n in range(1, MOST) if n not in self._members), 0)
            if not number:
                raise OSError(errno.ENOSPC, "too many containers")
            made = Member(self, group, names, number)
            self._members[number] = made
            return made

    def leave(self, member: Member) -> None:
        with self._lock:
            self._members.pop(member.number, None)

    def find(self, group: str, name: str) -> list[IPv4Address]:
        if not group:
            return []
        with self._lock:
            return [
                m.address for m in self._members.values() if m.group == group and name in m.names
            ]

    def connect(self, caller: Member, protocol: Protocol, end: Endpoint) -> Decision:
        """Allowed within a group. Elsewhere nobody has the address."""
        with self._lock:
            found = self._members.get(int(end.host) - MEMBERS)
        if found is None or not caller.group or found.group != caller.group:
            return Decision(False, "no container of its group", errno.EHOSTUNREACH, cacheable=False)
        rule = f"group {caller.group}: {min(found.names, default='')}"
        if protocol != Protocol.TCP:
            return Decision(False, f"{rule}, TCP only", errno.ECONNREFUSED, cacheable=False)
        for there in found.faces(end.port):
            key = self._host.listener(there.host, there.port)
            if key is not None and found.listens is not None and found.listens(key):
                return Decision(True, rule, cacheable=False, redirect=there, needs_relay=True)
        return Decision(False, f"{rule} does not listen", errno.ECONNREFUSED, cacheable=False)


class GroupNames:
    """A resolver that knows the members of a group, for one of them."""

    def __init__(self, member: Member, behind: Resolver) -> None:
        self._member = member
        self._behind = behind

    def hosts_names(self, address: IPAddress) -> tuple[str, ...]:
        """See Resolver."""
        return self._behind.hosts_names(address)

    async def query(self, message: bytes, server: IPAddress | None = None) -> bytes:
        """See Resolver."""
        question = wire.read_question(message)
        found = self._member.find(question.name)
        if not found:
            return await self._behind.query(message, server)
        records = [(wire.A, each.packed) for each in found] if question.type == wire.A else []
        return wire.reply(message, question, wire.NOERROR, records, ttl=TTL)
