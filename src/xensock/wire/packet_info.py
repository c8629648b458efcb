"""What IP says of a datagram beside its payload (extension packet-info), and the control messages that tell it.

24 bytes before a frame's payload: `has` u8 @0, `hops` u8 @1, `tos` u8 @2, zeros, `address` 16 bytes @8.
Control messages are those of ip(7) and ipv6(7); the IPv6 ones are RFC 3542's.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

from xensock.calls.address import MAPPED

from .errors import WireError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Control = tuple[int, int, bytes]

_INFO = struct.Struct("<BBB5x16s")
SIZE = _INFO.size
NO_ADDRESS = bytes(16)
_IP, _IPV6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
# linux/in.h: those of IPv4. Python 3.11 has not all of them.
_TOS4, _HOPS4, _INFO4, _RECEIVE_HOPS4, _RECEIVE_TOS4 = ((_IP, n) for n in (1, 2, 8, 12, 13))
_TOS6, _HOPS6, _INFO6, _RECEIVE_INFO6, _RECEIVE_HOPS6, _RECEIVE_TOS6 = (
    (_IPV6, name)
    for name in (
        socket.IPV6_TCLASS,
        socket.IPV6_HOPLIMIT,
        socket.IPV6_PKTINFO,
        socket.IPV6_RECVPKTINFO,
        socket.IPV6_RECVHOPLIMIT,
        socket.IPV6_RECVTCLASS,
    )
)
_INT = struct.Struct("=i")
_PKTINFO = struct.Struct("=I4s4s")  # struct in_pktinfo: interface, own address, called address
_PKTINFO6 = struct.Struct("=16sI")  # struct in6_pktinfo

ROOM = 256
"""Bytes that hold the control messages of a datagram."""
IP_RECEIVE = frozenset({_INFO4, _RECEIVE_HOPS4, _RECEIVE_TOS4})
"""Options by which a socket asks for them."""
IPV6_RECEIVE = frozenset({_RECEIVE_INFO6, _RECEIVE_HOPS6, _RECEIVE_TOS6})
"""And those that an AF_INET6 socket has beside."""


class Has(IntFlag):
    """Bits of `has`: which of the fields are there; others are ignored."""

    ADDRESS = 1
    HOPS = 2
    TOS = 4


@dataclass(frozen=True, slots=True)
class PacketInfo:
    """Fields of a datagram's packet. What is None is as the socket has it (`out`), or not known (`in`).

    address   `out`: where from, `in`: which address was called; 16 bytes, IPv4 mapped
    hops      the TTL or hop limit
    tos       the type of service or traffic class
    """

    address: bytes | None = None
    hops: int | None = None
    tos: int | None = None

    def encode(self) -> bytes:
        """The 24 bytes. Raises WireError for a number beyond 255 and an address of another length."""
        if self.address is not None and len(self.address) != len(NO_ADDRESS):
            raise WireError(f"address of {len(self.address)} bytes in packet information")
        has = Has.ADDRESS if self.address is not None else Has(0)
        has |= Has.HOPS if self.hops is not None else Has(0)
        has |= Has.TOS if self.tos is not None else Has(0)
        try:
            return _INFO.pack(has, self.hops or 0, self.tos or 0, self.address or NO_ADDRESS)
        except struct.error as why:
            raise WireError(f"packet information: {why}") from why

    @classmethod
    def decode(cls, raw: bytes) -> PacketInfo:
        """Out of the beginning of a payload. Raises WireError for fewer than 24 bytes."""
        if len(raw) < SIZE:
            raise WireError(f"packet information of {len(raw)} bytes")
        has, hops, tos, address = _INFO.unpack_from(raw)
        return cls(
            address if has & Has.ADDRESS else None,
            hops if has & Has.HOPS else None,
            tos if has & Has.TOS else None,
        )

    @classmethod
    def told(cls, control: Iterable[Control]) -> PacketInfo:
        """What the kernel told by recvmsg(2)."""
        address: bytes | None = None
        hops: int | None = None
        tos: int | None = None
        for level, kind, data in control:
            which = (level, kind)
            if which == _INFO4:
                address = MAPPED + _PKTINFO.unpack(data)[2]
            elif which == _INFO6:
                address = _PKTINFO6.unpack(data)[0]
            elif which in (_HOPS4, _HOPS6):
                hops = _INT.unpack(data)[0]
            elif which in (_TOS4, _TOS6):
                tos = data[0] if len(data) == 1 else _INT.unpack(data)[0]
        return cls(address, hops, tos)

    @classmethod
    def given(cls, control: Iterable[Control]) -> PacketInfo:
        """What a program gives to sendmsg(2). Raises OSError: EINVAL for other messages, lengths and values than the
        kernel's; ENODEV for an interface, which a guest cannot choose."""
        address: bytes | None = None
        hops: int | None = None
        tos: int | None = None
        for level, kind, data in control:
            which = (level, kind)
            if which == _INFO4:
                index, source, _ = _PKTINFO.unpack(_of_size(_PKTINFO, data))
                address = _source(index, MAPPED + source)
            elif which == _INFO6:
                source, index = _PKTINFO6.unpack(_of_size(_PKTINFO6, data))
                address = _source(index, source)
            elif which == _HOPS4:
                hops = _number(data, 1)
            elif which == _TOS4:
                tos = data[0] if len(data) == 1 else _number(data, 0)
            elif which == _HOPS6:
                hops = _or_usual(_number(data, -1))
            elif which == _TOS6:
                tos = _or_usual(_number(data, -1))
            else:
                raise _refused(errno.EINVAL)
        return cls(address, hops, tos)

    def for_sending(self, family: int, four: bool) -> list[Control]:
        """For sendmsg(2) of a socket of that family; `four`: to an IPv4 address, which may be mapped. Raises OSError
        (EINVAL) for an address of the other version."""
        found: list[Control] = []
        if self.hops is not None:
            found.append((*(_HOPS4 if four else _HOPS6), _INT.pack(self.hops)))
        if self.tos is not None:
            found.append((*(_TOS4 if four else _TOS6), _INT.pack(self.tos)))
        if self.address is not None:
            if self.address.startswith(MAPPED) != four:
                raise _refused(errno.EINVAL)
            if family == socket.AF_INET:
                found.append((*_INFO4, _PKTINFO.pack(0, self.address[12:], bytes(4))))
            else:
                found.append((*_INFO6, _PKTINFO6.pack(self.address, 0)))
        return found

    def as_received(self, wanted: Collection[tuple[int, int]], four: bool) -> list[Control]:
        """As recvmsg(2) has it, in Linux's order, for a socket with those of IP_RECEIVE and IPV6_RECEIVE switched on;
        `four`: from an IPv4 address. There is no number of an interface: 0."""
        found: list[Control] = []
        tos = None if self.tos is None else _INT.pack(self.tos)
        hops = None if self.hops is None else _INT.pack(self.hops)
        if self.address is not None:
            if _RECEIVE_INFO6 in wanted:
                found.append((*_INFO6, _PKTINFO6.pack(self.address, 0)))
            if four and _INFO4 in wanted:
                host = self.address[12:]
                found.append((*_INFO4, _PKTINFO.pack(0, host, host)))
        if hops is not None:
            if four and _RECEIVE_HOPS4 in wanted:
                found.append((*_HOPS4, hops))
            elif not four and _RECEIVE_HOPS6 in wanted:
                found.append((*_HOPS6, hops))
        if tos is not None:
            if four and _RECEIVE_TOS4 in wanted:
                found.append((*_TOS4, tos[:1]))
            elif not four and _RECEIVE_TOS6 in wanted:
                found.append((*_TOS6, tos))
        return found


def telling(family: int) -> frozenset[tuple[int, int]]:
    """The options with which a socket tells all of it."""
    if family != socket.AF_INET6:
        return IP_RECEIVE
    return (IP_RECEIVE | IPV6_RECEIVE) - {_INFO4}  # the IPv6 one tells mapped addresses, too


def fitting(messages: Iterable[Control], room: int) -> tuple[list[Control], bool]:
    """What of them a buffer of `room` bytes holds, and whether some was cut: put_cmsg() of Linux's net/core/scm.c."""
    found: list[Control] = []
    cut = False
    for level, kind, data in messages:
        if room < socket.CMSG_LEN(0):
            return found, True
        size = min(socket.CMSG_LEN(len(data)), room)
        cut = cut or size < socket.CMSG_LEN(len(data))
        found.append((level, kind, data[: size - socket.CMSG_LEN(0)]))
        room -= min(socket.CMSG_SPACE(len(data)), room)
    return found, cut


def _refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _of_size(form: struct.Struct, data: bytes) -> bytes:
    if len(data) != form.size:
        raise _refused(errno.EINVAL)
    return data


def _source(index: int, address: bytes) -> bytes | None:
    if index:
        raise _refused(errno.ENODEV)
    return None if address in (NO_ADDRESS, MAPPED + bytes(4)) else address


def _number(data: bytes, least: int) -> int:
    if len(data) != _INT.size or not least <= (number := _INT.unpack(data)[0]) <= 255:
        raise _refused(errno.EINVAL)
    return int(number)


def _or_usual(number: int) -> int | None:
    return None if number < 0 else number
