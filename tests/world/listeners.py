"""Which ports of a network namespace are listened on: sock_diag(7), asked from inside it."""

from __future__ import annotations

import socket
import struct


def listening_ports() -> set[int]:
    """Ports of TCP listeners. Not by /proc/net/tcp, which walks a table of all sockets: 12 ms."""
    sock_diag_by_family, dump, listen = 20, 0x301, 1 << 10
    found: set[int] = set()
    for family in (socket.AF_INET, socket.AF_INET6):
        query = struct.pack("=BBxxI48x", family, socket.IPPROTO_TCP, listen)
        head = struct.pack("=IHHII", 16 + len(query), sock_diag_by_family, dump, 0, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as diag:
            diag.send(head + query)
            while _ports_of(diag.recv(65536), found):
                pass
    return found


def _ports_of(messages: bytes, found: set[int]) -> bool:
    """Add the source ports of inet_diag_msg messages; false at the end of the dump."""
    while messages:
        length, kind = struct.unpack_from("=IH", messages)
        if kind in (2, 3):  # NLMSG_ERROR: no such family here; NLMSG_DONE
            return False
        found.add(int.from_bytes(messages[20:22], "big"))
        messages = messages[(length + 3) & ~3 :]
    return True
