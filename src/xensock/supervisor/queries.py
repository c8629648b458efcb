"""Interface ioctls (netdevice(7)) answered from the guest's network, whatever network the asking socket is of.

The arguments are copied, asked on a socket of the guest's own network and copied back, so nothing of the host shows.
"""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
from typing import TYPE_CHECKING

from xensock import _core

if TYPE_CHECKING:
    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor

SIOCGIFCONF, SIOCETHTOOL = 0x8912, 0x8946
# Requests that only read and whose struct ifreq (40 bytes) holds no pointer.
READS = frozenset(
    {
        0x8910,
        0x8913,
        0x8915,
        0x8917,
        0x8919,
        0x891B,
        0x891D,
        0x891F,
        0x8921,
        0x8923,
        0x8927,
        0x8933,
        0x8942,
        0x8970,
    }
)
IFREQ, IFCONF = 40, 16
LONGEST = 65536


def ioctl(sup: Supervisor, q: Question) -> None:
    request, where = q.args[1] & 0xFFFFFFFF, q.args[2]
    error = 0
    try:
        if not where:
            error = errno.EFAULT
        elif request == SIOCGIFCONF:
            _list(sup, q, where)
        elif request in READS:
            _read(sup, q, request, where)
        else:
            error = errno.EOPNOTSUPP if request == SIOCETHTOOL else errno.EPERM
    except OSError as failure:
        error = failure.errno or errno.EIO
    sup.answer(q, error)


def _read(sup: Supervisor, q: Question, request: int, where: int) -> None:
    ifreq = _core.read_memory(q.tid, where, IFREQ)
    with sup.parts.guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock.fileno(), request, ifreq)
    if _core.super_valid(sup.handle, q.id):
        _core.write_memory(q.tid, where, answer)


def _list(sup: Supervisor, q: Question, where: int) -> None:
    length, pointer = struct.unpack("=i4xQ", _core.read_memory(q.tid, where, IFCONF))
    # Without a buffer the kernel says how much there is, whatever the length.
    length = min(max(length, 0), LONGEST) if pointer else 0
    room = array.array("B", bytes(max(length, 1)))
    address = room.buffer_info()[0] if pointer else 0
    with sup.parts.guest.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock.fileno(), SIOCGIFCONF, struct.pack("=i4xQ", length, address))
    (used,) = struct.unpack_from("=i", answer)
    if _core.super_valid(sup.handle, q.id):
        if pointer and used:
            _core.write_memory(q.tid, pointer, room.tobytes()[:used])
        _core.write_memory(q.tid, where, struct.pack("=i4xQ", used, pointer))
