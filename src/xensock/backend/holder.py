"""The holder: a small process that keeps a backend's descriptors, and starts it again when it ends suddenly.

Theory of operation
    The backend is its child and speaks to it as to systemd: READY=1, and FDSTORE=1 with descriptors to keep
    (sd_notify(3)). The next backend gets them as sd_listen_fds(3) says. Nothing of XenSock is in here that a new
    version might have to change, so it stays when that comes.

    A backend that is to be replaced says UPGRADE=1 with a pipe. It is stopped (SIGSTOP), so that what is kept stays as
    it is, and the next one is started with that beside it. Once that has read what it needs, it says TAKING=1: then the
    one before is killed, and the next told so, by the end of a pipe whose number is in its environment. From there on
    it is as after any sudden end. One that does not come so far is ended, the one before goes on, and the pipe that
    came with UPGRADE=1 says why.

Rules
- A backend that was killed, or failed after it had been ready, is started again; one that ends in order, at a signal
  that was passed on to it, or before it was ever ready, ends its holder.
- One that cannot be started is tried again after a while that grows, `TRIES` times in a row. Then the holder ends with
  it, what it kept is closed, and guests are refused by the kernel (ENOSYS).
"""

from __future__ import annotations

import errno
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
TAKE = "XENSOCK_TAKE"  # in that of one whose predecessor is still there: the pipe that ends when that has
TAKES_WITHIN_S = 60.0
LOOK_S = 0.1  # between looks whether a signal came
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
        self._next = 0  # the child that is to replace it
        self._taking = False
        self._asked = -1  # where the outcome of an upgrade is to be told, if one is wanted
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
            while not self._look(pidfd):
                if self._asked >= 0:
                    pidfd = self._swap(pidfd)
            self._hear()  # what it said last
        finally:
            os.close(pidfd)
        _, status = os.waitpid(self._child, 0)
        return os.waitstatus_to_exitcode(status)

    def _look(self, pidfd: int, seconds: float | None = None) -> bool:
        """Wait until a child ends or says something, and hear that; whether it has ended."""
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._sock, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(None if seconds is None else seconds * 1000)]
        if pidfd in ready:
            return True
        if ready:
            self._hear()
        return False

    def _swap(self, pidfd: int) -> int:
        """Replace the child by one that is started now; the pidfd of whichever there is then."""
        asked, self._asked = self._asked, -1
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        os.waitid(os.P_PIDFD, pidfd, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        self._hear()  # all that it has to keep
        told, tells = os.pipe()
        self._taking = False
        self._next = self._start(told)
        os.close(told)
        following = os.pidfd_open(self._next)
        failed = self._comes(following)
        if failed:
            os.close(tells)
            signal.pidfd_send_signal(following, signal.SIGKILL)
            os.close(following)
            os.waitpid(self._next, 0)
            self._next = 0
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
            with suppress(OSError):
                os.write(asked, failed.encode())
            os.close(asked)
            return pidfd
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitpid(self._child, 0)
        os.close(pidfd)
        self._child, self._next, self._ready = self._next, 0, False
        os.close(tells)
        os.close(asked)
        return following

    def _comes(self, pidfd: int) -> str:
        """Wait until the next one would take over; else why it does not."""
        deadline = time.monotonic() + TAKES_WITHIN_S
        while not self._taking:
            if self._look(pidfd, LOOK_S):
                self._hear()
                if self._taking:
                    break  # it ended since: as any that ends suddenly
                found = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
                assert found is not None
                by = "status" if found.si_code == os.CLD_EXITED else "signal"
                return f"the new one ended with {by} {found.si_status}"
            if self._ending:
                return "the backend is to end"
            if time.monotonic() > deadline:
                return f"the new one was not ready to take over within {TAKES_WITHIN_S:g} s"
        return ""

    def _start(self, told: int = -1) -> int:
        """Start a backend. `told`: the pipe whose end it is to wait for before it takes over."""
        names = list(self._kept)
        env = dict(os.environ)
        for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
            env.pop(name, None)
        env["NOTIFY_SOCKET"] = "@" + os.fsdecode(self._sock.getsockname()[1:])
        env[HELD] = "1"
        env.pop(TAKE, None)
        child = os.fork()
        if child:
            return child
        try:
            for number in PASSED_ON:
                signal.signal(number, signal.SIG_DFL)
            os.setpgid(0, 0)  # what a terminal sends comes by way of the holder, once
            moved = [_above(self._kept[name], FIRST + len(names)) for name in names]
            if told >= 0:
                pipe = _above(told, FIRST + len(names))
                os.set_inheritable(pipe, True)
                env[TAKE] = str(pipe)
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
            if sender and sender == self._next:
                # It keeps nothing yet: what it would is its predecessor's.
                self._taking = self._taking or data == b"TAKING=1"
            elif sender == self._child:
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
        elif "UPGRADE" in words:
            if self._asked < 0 and fds:
                self._asked = fds.pop(0)
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


def take() -> None:
    """Wait until the backend that this one replaces has ended, if there is one; nothing can be taken before."""
    pipe = os.environ.pop(TAKE, "")
    if pipe:
        notify("TAKING=1")
        with os.fdopen(int(pipe), "rb") as end:
            end.read()


def ask_to_be_replaced() -> int:
    """Have the holder start the next backend. A pipe that says why that failed; if it does not, this process ends.

    Raises OSError.
    """
    outcome, tells = os.pipe()
    heard = notify("UPGRADE=1", tells)
    os.close(tells)
    if not heard:
        os.close(outcome)
        raise OSError(errno.ECONNREFUSED, "the holder is gone")
    return outcome
