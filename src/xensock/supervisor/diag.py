"""Who listens where, asked of the kernel by sock_diag(7): the truth where a table of our own would grow stale."""

from __future__ import annotations

import os
import socket
import struct
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from ipaddress import IPv4Address, IPv6Address

SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_DUMP = 0x300
TCP_LISTEN, TCP_BOUND_INACTIVE = 10, 13  # the latter Linux 6.8; older kernels take no notice
HOLDING = 1 << TCP_LISTEN | 1 << TCP_BOUND_INACTIVE
CONNECTED = (
    1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11
)  # and on their way there or back
INET_DIAG_SKV6ONLY = 11
_ANSWER, _ATTRIBUTES = 16, 16 + 72  # struct inet_diag_msg behind the header, and what follows it
NETLINK_SOCK_DIAG = 4


@dataclass(frozen=True, slots=True)
class Held:
    """A socket with a port: as a rule one that listens on it, or is bound to it and neither listens nor connects."""

    cookie: int
    host: IPv4Address | IPv6Address
    v6only: bool
    port: int
    inode: int


class Diag:
    """Exact look-ups in one network namespace. Safe for several threads."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lock = threading.Lock()
        self._shows_bound: bool | None = None  # not known yet

    def close(self) -> None:
        self._link.close()

    def listener(self, host: IPv4Address | IPv6Address, port: int) -> int | None:
        """Cookie (SO_COOKIE) of the socket that a connection to this address would reach, None if nobody listens."""
        family = socket.AF_INET if host.version == 4 else socket.AF_INET6
        where = host.packed.ljust(16, b"\0")
        # inet_diag_req_v2: the look-up's destination is the listener's own side.
        body = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 1 << TCP_LISTEN)
        body += (
            struct.pack("!HH", port, 0)
            + where
            + bytes(16)
            + struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
        )
        with self._lock:
            self._link.send(
                struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, 1, 1, 0) + body
            )
            answer = self._link.recv(65536)
        (kind,) = struct.unpack_from("=H", answer, 4)
        if kind == NLMSG_ERROR:
            return None
        if answer[17] != TCP_LISTEN:  # idiag_state
            return None
        return _cookie_in(answer, 0)

    def shows_bound(self, make: Callable[[int, int, int], socket.socket] = socket.socket) -> bool:
        """Whether held() tells of sockets that are only bound. `make` makes sockets of this namespace.

        Not where it tells of none: in a kernel without tcp_diag.
        """
        if self._shows_bound is None:
            with make(socket.AF_INET, socket.SOCK_STREAM, 0) as bound:
                bound.bind(("127.0.0.1", 0))
                try:
                    held = self.held(bound.getsockname()[1])
                except OSError:
                    held = []
                self._shows_bound = any(each.cookie == cookie(bound) for each in held)
        return self._shows_bound

    def held(
        self, port: int = 0, states: int = HOLDING, protocol: int = socket.IPPROTO_TCP
    ) -> list[Held]:
        """Every socket that holds a port (0: any), of both families; TCP's that are only bound since Linux 6.8.

        `states`: a set of bits, as CONNECTED. Raises OSError: ENOENT where the kernel lacks the module for that.
        """
        found = []
        for family in (socket.AF_INET, socket.AF_INET6):
            body = struct.pack("=BBBBI", family, protocol, 0, 0, states)
            body += struct.pack("!HH", port, 0) + bytes(32 + 12)
            with self._lock:
                self._link.send(
                    struct.pack("=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, 1 | NLM_F_DUMP, 1, 0)
                    + body
                )
                found += list(self._dumped(family, port))
        return found

    def _dumped(self, family: int, port: int) -> Iterator[Held]:
        """The answers to a dump; read to the end, whatever they say. Of bound sockets the kernel tells all ports."""
        error = 0
        while True:
            data = self._link.recv(1 << 18)
            at = 0
            while at + _ANSWER <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if kind in (NLMSG_ERROR, NLMSG_DONE):
                    # A module that is missing is told at the end (ENOENT).
                    (error,) = struct.unpack_from("=i", data, at + _ANSWER)
                    if error:
                        raise OSError(-error, os.strerror(-error))
                    return
                if port and struct.unpack_from("!H", data, at + 20)[0] != port:  # idiag_sport
                    at += (length + 3) & ~3
                    continue
                where = data[at + 24 : at + (28 if family == socket.AF_INET else 40)]
                only = _attribute(data[at + _ATTRIBUTES : at + length], INET_DIAG_SKV6ONLY)
                (number,) = struct.unpack_from("!H", data, at + 20)
                (inode,) = struct.unpack_from("=I", data, at + _ATTRIBUTES - 4)
                yield Held(_cookie_in(data, at), ip_address(where), any(only), number, inode)
                at += (length + 3) & ~3


def _cookie_in(message: bytes, at: int) -> int:
    low, high = struct.unpack_from("=II", message, at + 16 + 4 + 4 + 32 + 4)
    return int(low | high << 32)


def _attribute(data: bytes, wanted: int) -> bytes:
    """The value of a netlink attribute (netlink(7)), empty if it is not there."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if kind == wanted:
            return data[at + 4 : at + length]
        at += max((length + 3) & ~3, 4)
    return b""


def cookie(sock: socket.socket) -> int:
    """SO_COOKIE (socket(7)): a number that no other socket since boot has."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0])


def open_link() -> socket.socket:
    """A socket to ask sock_diag with, of this process's network. Raises OSError."""
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
    )


def open_host() -> Diag:
    return Diag(open_link())
