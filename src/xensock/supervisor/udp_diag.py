"""What sock_diag(7) tells of a guest's UDP sockets: which one is where, and that one is gone."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

from xensock.supervisor.diag import NETLINK_SOCK_DIAG, Diag

if TYPE_CHECKING:
    from xensock.calls.address import Endpoint
    from xensock.supervisor.guest import Guest

DESTROY_GROUPS = 1 << 1 | 1 << 3  # SKNLGRP_INET_UDP_DESTROY, SKNLGRP_INET6_UDP_DESTROY
BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
UDP = 17
AT_ONCE = 1000  # messages, before others get their turn
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


def read(diag: socket.socket) -> tuple[set[int], bool]:
    """What `watch` gave has to say: SO_COOKIE of sockets that have ended, and whether some that had were not told (the
    queue was full). Raises OSError."""
    ended, lost = set(), False
    for _ in range(AT_ONCE):
        try:
            ended.add(cookie_of(diag.recv(0xFFFF)))
        except BlockingIOError:
            break
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            lost = True
    return ended - {0}, lost


def there(guest: Guest) -> set[int]:
    """SO_COOKIE of every UDP socket of the guest's network that has a port. Raises OSError."""
    diag = Diag(guest.socket(socket.AF_NETLINK, _RAW, NETLINK_SOCK_DIAG))
    try:
        return {each.cookie for each in diag.held(states=0xFFFFFFFF, protocol=UDP)}
    finally:
        diag.close()


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
