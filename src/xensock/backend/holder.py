"""The holder: a small process that keeps a backend's descriptors, and starts it again when it ends suddenly.

Theory of operation
    The backend is its child and speaks to it as to systemd: READY=1, and FDSTORE=1 with descriptors to keep
    (sd_notify(3)). The next backend gets them as sd_listen_fds(3) says. Nothing of XenSock is in here that a new
    version might have to change, so it stays when that comes.

Rules
- A backend that was killed, or failed after it had been ready, is started again; one that ends in order, at a signal
  that was passed on to it, or before it was ever ready, ends its holder.
- One that cannot be started is tried again after a while that grows, `TRIES` times in a row. Then the holder ends with
  it, what it kept is closed, and guests are refused by the kernel (ENOSYS).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock.backend.store import inherited
from xensock.backend.systemd import FIRST, notify

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

HELD = "XENSOCK_HELD"  # in the environment of a backend that has a holder
TRIES = 10
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 5.0
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOST_FDS = 253  # of a message (SCM_MAX_FD)
_UCRED = struct.Struct("=iii")
SCM_CREDENTIALS = 2


class Holder:
    """Runs `argv` until that ends for good."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = list(argv)
        self._kept = inherited()
        self._child = 0
        self._ready = self._ever = self._ending = False
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind("")  # a name that the kernel chooses (unix(7), autobind)
        self._sock.setblocking(False)

    def run(self) -> int:
        """The backend's exit status; 128 and the signal's number if one ended it."""
        for number in PASSED_ON:
            signal.signal(number, self._pass_on)
        failed = 0
        while True:
            self._ready = False
            status = self._once()
            failed = 0 if self._ready else failed + 1
            if self._ending or status == 0 or not self._ever or failed >= TRIES:
                return status if status >= 0 else 128 - status
            how = f"signal {-status}" if status < 0 else f"status {status}"
            print(f"xensock: the backend ended with {how}; it is started again", file=sys.stderr)
            if failed:
                time.sleep(min(FIRST_WAIT_S * 2**failed, LONGEST_WAIT_S))

    def _once(self) -> int:
        self._child = self._start()
        pidfd = os.pidfd_open(self._child)
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.register(self._sock, select.POLLIN)
            while pidfd not in (ready := [fd for fd, _ in poll.poll()]):
                if self._sock.fileno() in ready:
                    self._hear()
            self._hear()  # what it said last
        finally:
            os.close(pidfd)
        _, status = os.waitpid(self._child, 0)
        return os.waitstatus_to_exitcode(status)

    def _start(self) -> int:
        names = list(self._kept)
        env = dict(os.environ)
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            env.pop(name, None)
        env["NOTIFY_SOCKET"] = "@" + os.fsdecode(self._sock.getsockname()[1:])
        env[HELD] = "1"
        child = os.fork()
        if child:
            return child
        try:
            for number in PASSED_ON:
                signal.signal(number, signal.SIG_DFL)
            os.setpgid(0, 0)  # what a terminal sends comes by way of the holder, once
            moved = [_above(self._kept[name], FIRST + len(names)) for name in names]
            for at, fd in enumerate(moved):
                os.dup2(fd, FIRST + at)
            env["LISTEN_PID"] = str(os.getpid())
            env["LISTEN_FDS"] = str(len(names))
            env["LISTEN_FDNAMES"] = ":".join(names)
            os.execve(self._argv[0], self._argv, env)
        finally:
            os._exit(127)

    def _hear(self) -> None:
        """All that the backend has said so far; others are not listened to."""
        while True:
            try:
                data, notes, _, _ = self._sock.recvmsg(
                    4096, socket.CMSG_SPACE(4 * MOST_FDS) + 64, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            fds: list[int] = []
            sender = 0
            for level, kind, value in notes:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds += struct.unpack(f"={len(value) // 4}i", value)
                elif (level, kind) == (socket.SOL_SOCKET, SCM_CREDENTIALS):
                    sender = _UCRED.unpack(value)[0]
            if sender == self._child:
                self._said(data.decode(errors="replace"), fds)
            for fd in fds:
                os.close(fd)

    def _said(self, text: str, fds: list[int]) -> None:
        words = dict(line.partition("=")[::2] for line in text.splitlines())
        name = words.get("FDNAME", "stored").replace(":", "_")
        if "FDSTORE" in words:
            for fd in fds[:1]:
                self._close(name)
                self._kept[name] = fd
                del fds[:1]
        elif "FDSTOREREMOVE" in words:
            self._close(name)
        else:
            if words.get("READY") == "1":
                self._ready = self._ever = True
            notify(text)

    def _close(self, name: str) -> None:
        fd = self._kept.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._ending = self._ending or number != signal.SIGHUP
        if self._child:
            with suppress(ProcessLookupError):
                os.kill(self._child, number)


def _above(fd: int, least: int) -> int:
    """A descriptor of the same file with a number from `least` on."""
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)


def hold() -> int:
    """Run this very command as a backend that is held. Its exit status."""
    return Holder([sys.executable, *sys.orig_argv[1:]]).run()


def held() -> bool:
    """Whether this process has a holder. What it starts itself has none."""
    return os.environ.pop(HELD, None) is not None
