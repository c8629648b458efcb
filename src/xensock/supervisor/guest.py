"""A guest as the supervisor sees it, whoever started it: a listener, a network namespace, its processes."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from xensock.supervisor.diag import NETLINK_SOCK_DIAG, Diag

if TYPE_CHECKING:
    from collections.abc import Callable

MESSAGE = struct.Struct("=iiii")
Socket = socket.socket  # a name that no method has


class Guest:
    """What a supervisor needs of a guest.

    listener  the seccomp notification descriptor, the supervisor's to take over; -1 before there is one
    killable  whether only fatal signals end the wait for an answer (Linux 5.19)
    pidfd     of the program
    proc      the guest's /proc, which shows its processes and no others
    level     how many PID namespaces its processes are below this one
    init      the number in there of a process of ours, "" where there is none
    left      what a predecessor of this backend left: descriptors by name, for whoever takes them out
    keep      has a copy of a descriptor kept for a successor, if there may be one
    drop      undoes that
    resumed   whether a predecessor served it
    journal   a memfd for calls under way (native/core/journal.h), -1 where they end with this process
    """

    def __init__(self, maker: socket.socket, init: str = "") -> None:
        self._maker = maker
        self._lock = threading.Lock()
        self.listener = -1
        self.killable = False
        self.pidfd = -1
        self.proc = -1
        self.level = 1
        self.init = init
        self.left: dict[str, int] = {}
        self.keep: Callable[[str, int], None] | None = None
        self.drop: Callable[[str], None] = lambda name: None
        self.journal = -1
        self.resumed = False

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket of the guest's network namespace. Raises OSError as socket(2), ESRCH once the guest is gone."""
        data, fds = b"", cast("list[int]", [])
        with self._lock, suppress(BrokenPipeError, ConnectionResetError):
            self._maker.send(MESSAGE.pack(ord("S"), family, kind, protocol))
            data, fds, _, _ = socket.recv_fds(self._maker, MESSAGE.size, 1)
        if len(data) != MESSAGE.size:
            raise OSError(errno.ESRCH, "the guest is gone")
        for fd in fds:
            os.set_inheritable(fd, False)
        error = MESSAGE.unpack(data)[1]
        if error or not fds:
            raise OSError(error or errno.ENOTCONN, os.strerror(error or errno.ENOTCONN))
        return socket.socket(family, kind & 0xF, protocol, fileno=fds[0])

    def kept(self, name: str, make: Callable[[], Socket]) -> Socket:
        """The predecessor's socket of this name, or a new one; it is kept for a successor. Raises OSError."""
        fd = self.left.pop(name, -1)
        sock = socket.socket(fileno=fd) if fd >= 0 else make()
        if self.keep is not None:
            self.keep(name, sock.fileno())
        return sock

    def diag(self) -> Diag:
        """A sock_diag(7) socket of the guest's network. Raises OSError."""
        return Diag(self.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG))

    def release(self) -> None:
        """Close what is known of its processes and the way to its network."""
        self._maker.close()
        for fd in (self.pidfd, self.proc):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.proc = -1
