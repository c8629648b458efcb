"""TCP sockets of a network namespace as the kernel tells of them by sock_diag(7): who talks to whom, and how much.

The counters are those of tcp(7)'s TCP_INFO. Bytes that a socket sent are counted without repetitions; of those it
received the kernel counts the other end's FIN as one (include/uapi/linux/tcp.h, RFC 4898).
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterator

SOCK_DIAG_BY_FAMILY, NLM_F_DUMP = 20, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3
# Groups SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY.
DESTROYED: dict[int, int] = {socket.AF_INET: 1, socket.AF_INET6: 3}
WITH_INFO = 1 << 1  # idiag_ext: INET_DIAG_INFO
EVERY_STATE = 0xFFF & ~(1 << 6 | 1 << 0)  # TIME_WAIT is no socket any more
STATES = (
    "", "established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "time-wait", "closed", "close-wait",
    "last-ack", "listening", "closing", "syn-recv", "bound",
)  # fmt: skip
_IDS = struct.Struct("!HH16s16s")
_OWNER = struct.Struct("=II")
_COOKIE = struct.Struct("=Q")
_ATTRIBUTE = struct.Struct("=HH")
_ACKED = struct.Struct("=QQ")
_HEAD, _BODY = 16, 72  # struct nlmsghdr, struct inet_diag_msg
LEAST = _HEAD + _BODY  # bytes of a message about a socket
_RTT, _COUNTED, _SENT, _LONG = 68, 120, 200, 216  # within struct tcp_info
INET_DIAG_INFO = 2
ENDED = 0x100  # an attribute of end_program.py's: ns of CLOCK_MONOTONIC and SO_NETNS_COOKIE, 8 bytes each


@dataclass(frozen=True, slots=True)
class Seen:
    """A socket. `info` is struct tcp_info as it came, empty if the kernel did not tell."""

    cookie: int
    state: int
    family: int
    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    user: int
    inode: int
    info: bytes

    @property
    def rtt(self) -> float | None:
        """Smoothed round-trip time in seconds."""
        if len(self.info) < _RTT + 4:
            return None
        return int.from_bytes(self.info[_RTT : _RTT + 4], "little") / 1e6

    def end(self, which: tuple[bytes, int]) -> Endpoint:
        """An address of the socket's: `local` or `remote`."""
        raw, port = which
        if self.family == socket.AF_INET:
            return Endpoint(IPv4Address(raw[:4]), port)
        return Endpoint(IPv6Address(raw), port).unmapped()


def counted(info: bytes, accepted: bool) -> tuple[int | None, int | None, int]:
    """Bytes sent, bytes received, and how it ended: 0 in order, ECONNRESET where our end's FIN was never
    acknowledged, ENOTCONN where there was no connection. None for what this kernel does not count."""
    import errno

    if len(info) < _LONG:
        return None, None, 0
    acked, received = _ACKED.unpack_from(info, _COUNTED)
    bytes_sent, repeated = _ACKED.unpack_from(info, _SENT)
    sent = bytes_sent - repeated
    if not accepted:
        if not acked:
            return 0, 0, errno.ENOTCONN
        acked -= 1  # the SYN
    if acked <= sent:
        return sent, received, errno.ECONNRESET
    return (
        sent,
        max(received - 1, 0),
        0,
    )  # an orderly end: the other one's FIN is among the received


def parse(message: bytes, at: int = 0) -> Seen:
    """One message about a socket. Raises struct.error for what is none."""
    family, state = message[at + 16], message[at + 17]
    sport, dport, src, dst = _IDS.unpack_from(message, at + 20)
    user, inode = _OWNER.unpack_from(message, at + 80)
    info = info_of(message, at)
    return Seen(
        cookie_of(message, at), state, family, (src, sport), (dst, dport), user, inode, info
    )


def cookie_of(message: bytes, at: int = 0) -> int:
    """The SO_COOKIE of the socket that a message is about."""
    found: int = _COOKIE.unpack_from(message, at + 60)[0]
    return found


def port_of(message: bytes, at: int = 0) -> int:
    """Its local port."""
    return int.from_bytes(message[at + 20 : at + 22], "big")


def info_of(message: bytes, at: int = 0) -> bytes:
    """Its struct tcp_info, empty if the kernel did not tell."""
    return _attribute(message, INET_DIAG_INFO, at)


def ended_ns(message: bytes) -> int:
    """When it ended (CLOCK_MONOTONIC); 0 if the message does not say."""
    return int.from_bytes(_attribute(message, ENDED)[:8], sys.byteorder)


def netns_of(message: bytes) -> int:
    """The SO_NETNS_COOKIE of its network namespace; 0 if the message does not say, which is of the listener's then."""
    return int.from_bytes(_attribute(message, ENDED)[8:], sys.byteorder)


def split(messages: bytes) -> Iterator[bytes]:
    """Messages that lie one behind the other."""
    at = 0
    while at < len(messages):
        length = int.from_bytes(messages[at : at + 4], sys.byteorder)
        yield messages[at : at + length]
        at += length


def _attribute(message: bytes, wanted: int, at: int = 0) -> bytes:
    length = int.from_bytes(message[at : at + 4], "little")
    here = at + _HEAD + _BODY
    while here + 4 <= at + length:
        size, kind = _ATTRIBUTE.unpack_from(message, here)
        if kind == wanted:
            return message[here + 4 : here + size]
        here += max((size + 3) & ~3, 4)
    return b""


def dump(
    link: socket.socket, protocol: int = socket.IPPROTO_TCP, states: int = EVERY_STATE
) -> Iterator[Seen]:
    """All sockets of a protocol of the network namespace of `link`, a socket of NETLINK_SOCK_DIAG. Raises OSError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        body = struct.pack("=BBBBI48x", family, protocol, WITH_INFO, 0, states)
        head = struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, 1 | NLM_F_DUMP, 1, 0)
        link.send(head + body)
        yield from _answers(link)


def _answers(link: socket.socket) -> Iterator[Seen]:
    while True:
        data = link.recv(1 << 18)
        at = 0
        while at + _HEAD <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                (number,) = struct.unpack_from("=i", data, at + _HEAD)
                if number:
                    raise OSError(-number, os.strerror(-number))
                return
            yield parse(data, at)
            at += (length + 3) & ~3
