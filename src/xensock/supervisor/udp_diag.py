"""What sock_diag(7) tells of a guest's UDP sockets: which one is where, and that one is gone."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from xensock.supervisor.diag import NETLINK_SOCK_DIAG

if TYPE_CHECKING:
    from xensock.calls.address import Endpoint
    from xensock.supervisor.guest import Guest

DESTROY_GROUPS = 1 << 1 | 1 << 3  # SKNLGRP_INET_UDP_DESTROY, SKNLGRP_INET6_UDP_DESTROY
BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
UDP = 17
_COOKIE = 16 + 4 + 4 + 32 + 4  # within a message with struct inet_diag_msg
_RAW = socket.SOCK_RAW | socket.SOCK_CLOEXEC


def watch(guest: Guest) -> socket.socket:
    """A netlink socket, which does not wait, that hears of each UDP socket's end in the guest's network. Raises OSError
    where the kernel tells nothing."""
    diag = guest.socket(socket.AF_NETLINK, _RAW, NETLINK_SOCK_DIAG)
    try:
        diag.setblocking(False)
        diag.bind((0, DESTROY_GROUPS))
    except OSError:
        diag.close()
        raise
    return diag


def cookie_of(message: bytes) -> int:
    """SO_COOKIE of the socket that a message is about; 0: it is about none."""
    if len(message) < _COOKIE + 8:
        return 0
    return int(struct.unpack_from("=Q", message, _COOKIE)[0])


def find(guest: Guest, local: Endpoint, remote: Endpoint) -> int:
    """SO_COOKIE of the guest's UDP socket that would receive from `remote`; 0: there is none (any more). Raises
    OSError."""
    # inet_diag_req_v2: for UDP the source is the remote end (udp_dump_one).
    body = struct.pack("=BBBBI", local.family, UDP, 0, 0, 0xFFFFFFFF)
    body += struct.pack("!HH", remote.port, local.port)
    body += remote.host.packed.ljust(16, b"\0") + local.host.packed.ljust(16, b"\0")
    body += struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
    with guest.socket(socket.AF_NETLINK, _RAW, NETLINK_SOCK_DIAG) as link:
        link.send(struct.pack("=IHHII", 16 + len(body), BY_FAMILY, 1, 1, 0) + body)
        answer = link.recv(65536)
    return cookie_of(answer) if struct.unpack_from("=H", answer, 4)[0] == BY_FAMILY else 0
