"""Who listens where, asked of the kernel by sock_diag(7): the truth where a table of our own would grow stale."""

from __future__ import annotations

import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

SOCK_DIAG_BY_FAMILY = 20
NLMSG_ERROR = 2
TCP_LISTEN = 10
NETLINK_SOCK_DIAG = 4


class Diag:
    """Exact look-ups in one network namespace. Safe for several threads."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lock = threading.Lock()

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
        low, high = struct.unpack_from("=II", answer, 16 + 4 + 4 + 32 + 4)
        return int(low | high << 32)


def cookie(sock: socket.socket) -> int:
    """SO_COOKIE (socket(7)): a number that no other socket since boot has."""
    return int(struct.unpack("=Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0])


def open_host() -> Diag:
    return Diag(
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
    )
