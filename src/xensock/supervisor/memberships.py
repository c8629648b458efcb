"""Multicast: which groups a guest's datagram sockets are in (ip(7), ipv6(7), RFC 3678).

Theory of operation
- A guest's interfaces are its own loopback, where it does what it likes, and its card, which stands for the network of
  this host that has the route to the group.
- A socket that joins by the card does so twice: itself, so that the guest's kernel hands it what comes in by the card;
  and the host's socket of its port, so that something comes. What the guest's kernel does not want is dropped there, so
  a list of sources needs no second copy.
- A socket may join before it is bound. Then the host's does as soon as there is one, by a backend that comes after this
  one as well.
- Rules decide about the group with the port; nothing but a rule that names groups allows it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol, Verb
from xensock.supervisor import family, rtnetlink
from xensock.supervisor.connecting import OWN
from xensock.supervisor.datagram_records import path_of, target
from xensock.supervisor.datagrams import Who
from xensock.supervisor.diag import cookie
from xensock.supervisor.groups import JOIN4, JOIN6, LEAVE4, LEAVE6
from xensock.supervisor.rtnetlink import GUEST4

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.address import IPAddress
    from xensock.supervisor.datagrams import Datagrams
    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor

IP, IP6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
IP_MULTICAST_IF, ADD_SOURCE, DROP_SOURCE = 32, 39, 40
MCAST_JOIN, MCAST_LEAVE, MCAST_JOIN_SOURCE, MCAST_LEAVE_SOURCE = 42, 45, 46, 47
LEAVES = {(IP, LEAVE4), (IP6, LEAVE6), (IP, MCAST_LEAVE), (IP6, MCAST_LEAVE)}
PART_LEAVES = {(IP, DROP_SOURCE), (IP, MCAST_LEAVE_SOURCE), (IP6, MCAST_LEAVE_SOURCE)}
FREE = (1024, 65535)  # port 0 asks for one of these
LONGEST = 512  # struct group_source_req has 264 bytes
ELSEWHERE = Decision(
    False,
    "groups are joined on this host's own network",
    errno.EOPNOTSUPP,
    hint="run without --backend",
)


class Wish(NamedTuple):
    """What a program asks for: a group, by which interface (its address, its index), and the option with the interface
    put in."""

    group: IPAddress
    local: IPv4Address
    card: int
    by: Callable[[int], bytes]


def parse(level: int, name: int, raw: bytes) -> Wish | None:
    """Read the option's value; None: the kernel finds the words for what is wrong with it."""
    if level == IP6 and name in (JOIN6, LEAVE6) and len(raw) >= 20:
        group6, index = IPv6Address(raw[:16]), struct.unpack_from("=I", raw, 16)[0]
        return Wish(group6, IPv4Address(0), index, lambda i: raw[:16] + struct.pack("=I", i))
    if level == IP and name in (JOIN4, LEAVE4) and len(raw) >= 8:
        index = struct.unpack_from("=I", raw, 8)[0] if len(raw) >= 12 else 0
        return Wish(
            IPv4Address(raw[:4]),
            IPv4Address(raw[4:8]),
            index,
            lambda i: raw[:4] + struct.pack("=II", 0, i),
        )
    if level == IP and name in (ADD_SOURCE, DROP_SOURCE) and len(raw) >= 12:
        card = GUEST4.packed
        return Wish(
            IPv4Address(raw[:4]), IPv4Address(raw[4:8]), 0, lambda i: raw[:4] + card + raw[8:12]
        )
    sizes = {MCAST_JOIN: 136, MCAST_LEAVE: 136, MCAST_JOIN_SOURCE: 264, MCAST_LEAVE_SOURCE: 264}
    if name in sizes and len(raw) >= sizes[name]:
        index, kind = struct.unpack_from("=I4xH", raw)
        found: IPAddress
        if kind == socket.AF_INET and level == IP:
            found = IPv4Address(raw[12:16])
        elif kind == socket.AF_INET6 and level == IP6:
            found = IPv6Address(raw[16:32])
        else:
            return None
        return Wish(found, IPv4Address(0), index, lambda i: struct.pack("=I", i) + raw[4:])
    return None


def setsockopt(sup: Supervisor, q: Question) -> None:
    """A datagram socket joins or leaves a group, or says by which interface it sends to groups."""
    level, name, where, length = q.args[1], q.args[2], q.args[3], q.args[4] & 0xFFFFFFFF
    level, name = level & 0xFFFFFFFF, name & 0xFFFFFFFF
    datagrams = sup.parts.datagrams
    try:
        if q.host:
            raise PermissionError(errno.EPERM, "the socket is of the host's network")
        if length > LONGEST:
            raise OSError(errno.EINVAL, "too long")
        raw = _core.read_memory(q.tid, where, length) if length else b""
        if not _core.super_valid(sup.handle, q.id):
            return
        if datagrams is None or family.stays(sup, q):
            q.sock.setsockopt(level, name, raw)
        elif (level, name) == (IP, IP_MULTICAST_IF):
            _send_by(datagrams, q, raw)
        else:
            _change(datagrams, q, level, name, raw)
    except OSError as failure:
        sup.answer(q, failure.errno or errno.EIO)
    else:
        sup.answer(q, 0)


def _send_by(datagrams: Datagrams, q: Question, raw: bytes) -> None:
    """IP_MULTICAST_IF: struct in_addr, ip_mreq or ip_mreqn. Raises OSError."""
    address = IPv4Address(raw[:4] if len(raw) < 8 else raw[4:8]) if len(raw) >= 4 else None
    index = struct.unpack_from("=I", raw, 8)[0] if len(raw) >= 12 else 0
    if address is None or index or int(address) == 0 or address.is_loopback:
        q.sock.setsockopt(IP, IP_MULTICAST_IF, raw)
        return
    if not _is_card(datagrams, address):
        raise OSError(errno.EADDRNOTAVAIL, "no interface has the address")
    q.sock.setsockopt(IP, IP_MULTICAST_IF, struct.pack("=4s4sI", bytes(4), bytes(4), _card(q)))


def _change(datagrams: Datagrams, q: Question, level: int, name: int, raw: bytes) -> None:
    wish = parse(level, name, raw)
    if wish is None or not wish.group.is_multicast or not _outside(datagrams, q, wish):
        q.sock.setsockopt(level, name, raw)
        return
    own = wish.by(_card(q))
    if (level, name) in PART_LEAVES:
        q.sock.setsockopt(level, name, own)
        return
    if (level, name) in LEAVES:
        q.sock.setsockopt(level, name, own)
        datagrams.groups.leave(cookie(q.sock), wish.group)
        return
    key, port = cookie(q.sock), q.sock.getsockname()[1]
    decision, error = may_join(datagrams, wish.group, port, q.tid), 0
    try:
        if not decision.allowed:
            raise OSError(decision.error, decision.rule)
        q.sock.setsockopt(level, name, own)
        datagrams.groups.join(key, wish.group, os.fstat(q.sock.fileno()).st_ino)
    except OSError as failure:
        error = failure.errno or errno.EIO
        raise
    finally:
        path = path_of(datagrams.home)
        where = target(Endpoint(wish.group, port), Protocol.UDP)
        who = Who(q.tid, q.program)
        datagrams.write(Verb.SETSOCKOPT, where, decision, path, error, who, q.start_ns)


def may_join(datagrams: Datagrams, group: IPAddress, port: int, pid: int) -> Decision:
    """May a socket of the guest's that is bound to this port, or to none (0), be in the group outside?"""
    return datagrams.point.join(group, port, pid) if datagrams.home.local else ELSEWHERE


def may_bind(datagrams: Datagrams, q: Question, local: Endpoint) -> Decision:
    """May a socket take the port, of all the groups that it joined before? OWN: it is in none."""
    decision = OWN
    for group in datagrams.groups.waiting(cookie(q.sock)):
        for port in (local.port,) if local.port else FREE:
            decision = may_join(datagrams, group, port, q.tid)
            if not decision.allowed:
                return decision
    return decision


def _outside(datagrams: Datagrams, q: Question, wish: Wish) -> bool:
    """Whether the interface is the guest's card; its loopback, and what else there may be, is no matter of ours. Raises
    OSError: ENODEV where there is none."""
    if wish.card:
        return wish.card == _card(q)
    if int(wish.local) == 0:
        return True
    if wish.local.is_loopback:
        return False
    if not _is_card(datagrams, wish.local):
        raise OSError(errno.ENODEV, "no interface has the address")
    return True


def _card(q: Question) -> int:
    return rtnetlink.socket_index(q.sock, rtnetlink.CARD)


def _is_card(datagrams: Datagrams, address: IPv4Address) -> bool:
    """Whether a program may mean its card: by the card's own address, or by that which its datagrams come from, as
    getsockname(2) shows."""
    return address in (GUEST4, datagrams.source)
