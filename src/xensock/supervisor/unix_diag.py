"""Which unix sockets a network namespace has: where they are bound, and with whom they are connected (sock_diag(7))."""

from __future__ import annotations

import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

from xensock.supervisor.diag import NLMSG_DONE, NLMSG_ERROR, SOCK_DIAG_BY_FAMILY

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUEST, DUMP = 1, 0x300
SHOW_VFS, SHOW_PEER = 2, 4  # linux/unix_diag.h
VFS, PEER = 1, 2
ALL = 0xFFFFFFFF  # states: a datagram socket is established once somebody has connected to it
_HEAD = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_MESSAGE = struct.Struct("=BBBBIII")


class UnixDiag:
    """Look-ups in the network namespace that `link` belongs to. Safe for several threads."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of it."""
        self._link.close()

    def has(self, devices: set[int], inode: int) -> bool:
        """Whether one of these sockets is bound to that file. `devices`: numbers that the file's device may have.

        The kernel tells the low 32 bits of the inode's number. Raises OSError where it tells nothing.
        """
        wanted = {(_kernel_device(device), inode & 0xFFFFFFFF) for device in devices}
        with self._lock:
            found = list(self._asked(REQUEST | DUMP, ALL, 0, SHOW_VFS))
        for message in found:
            value = _attribute(message, VFS)
            if len(value) == 8:
                number, device = struct.unpack("=II", value)
                if (device, number) in wanted:
                    return True
        return False

    def peer(self, inode: int) -> int:
        """The inode (among sockets) of the socket that this one is connected with; 0 if there is none."""
        with self._lock:
            try:
                found = list(self._asked(REQUEST, ALL, inode & 0xFFFFFFFF, SHOW_PEER))
            except OSError:
                return 0
        value = _attribute(found[0], PEER) if found else b""
        return int.from_bytes(value, "little") if len(value) == 4 else 0

    def _asked(self, flags: int, states: int, inode: int, show: int) -> Iterator[bytes]:
        body = _REQUEST.pack(socket.AF_UNIX, 0, 0, states, inode, show, 0xFFFFFFFF, 0xFFFFFFFF)
        size = _HEAD.size + len(body)
        self._link.send(_HEAD.pack(size, SOCK_DIAG_BY_FAMILY, flags, 1, 0) + body)
        while True:
            data = self._link.recv(1 << 18)
            at = 0
            while at + _HEAD.size <= len(data):
                length, kind, _, _, _ = _HEAD.unpack_from(data, at)
                if kind == NLMSG_ERROR:
                    (error,) = struct.unpack_from("=i", data, at + _HEAD.size)
                    raise OSError(-error, os.strerror(-error))
                if kind == NLMSG_DONE:
                    return
                yield data[at + _HEAD.size : at + length]
                at += (length + 3) & ~3
            if not flags & DUMP:
                return


def _kernel_device(device: int) -> int:
    """A device number as the kernel keeps it inside (linux/kdev_t.h)."""
    return os.major(device) << 20 | os.minor(device)


def _attribute(message: bytes, wanted: int) -> bytes:
    at = _MESSAGE.size
    while at + 4 <= len(message):
        length, kind = struct.unpack_from("=HH", message, at)
        if kind == wanted:
            return message[at + 4 : at + length]
        at += max((length + 3) & ~3, 4)
    return b""
