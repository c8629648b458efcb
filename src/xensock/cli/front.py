"""The front of `xensock run`: the process that the shell knows.

Theory of operation: the front stays in the shell's job and so does the program; the backend, forked from the front,
leaves it for a process group of its own, where neither the terminal's keys nor a guest's kill(0, …) reach it. Whatever
is sent to the job as a whole has therefore reached the program; a signal that somebody sends to the front alone is
passed on. While the program is stopped the front is, so that the shell sees its job stopped; it ends with the backend's
status.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock.cli import witness
from xensock.streams import let_go

if TYPE_CHECKING:
    from collections.abc import Callable

FAILURE = 125


def run(
    backend: Callable[[int, socket.socket], int], beside: Callable[[], None] = lambda: None
) -> int:
    """Fork the backend, call it there with the job's process group and a socket to here; return its exit status.
    `beside` is called here meanwhile."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    group = os.getpgrp()
    # Before the fork, so that no signal is lost between.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, witness.ALL)
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = FAILURE
        try:
            near.close()
            _leave_the_job(mask)
            status = backend(group, far)
        finally:
            with suppress(OSError):
                sys.stderr.flush()
            os._exit(status)
    far.close()
    with near:
        beheld = witness.start(near)
        let_go(0, 1, 2)  # the program's alone; the backend reports on stderr
        try:
            beside()
            return _wait(pid, near, beheld)
        finally:
            beheld.end()


def _leave_the_job(mask: set[signal.Signals] | set[int]) -> None:
    os.setpgid(0, 0)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _wait(pid: int, backend: socket.socket, beheld: witness.Witness) -> int:
    own = {pid, os.getpid()}  # the backend lets this process go on; a broken pipe of our own
    while True:
        info = signal.sigwaitinfo(witness.ALL)
        if info.si_signo == signal.SIGCHLD:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else FAILURE
            early = _early_status(backend)
            if early is not None:
                return early
        elif info.si_pid not in own and not beheld.saw(info.si_signo):
            with suppress(BrokenPipeError):
                backend.send(bytes([info.si_signo]))


def _early_status(backend: socket.socket) -> int | None:
    try:
        return (backend.recv(1, socket.MSG_DONTWAIT) or bytes([FAILURE]))[0]
    except BlockingIOError:
        return None


def detacher(front: socket.socket, quiet: bool) -> Callable[[int], None]:
    """For the backend: lets the front end with a status while processes of the guest go on, as daemons do.

    `quiet`: nothing more will be said on stderr, so that its reader sees its end.
    """
    pidfd = os.pidfd_open(os.getppid())

    def detach(code: int) -> None:
        if quiet:
            let_go(2)
        front.send(bytes([code]))
        _send(pidfd, signal.SIGCHLD)  # the front sleeps in sigwaitinfo

    return detach


def mirror() -> Callable[[int], None]:
    """For the backend: has the front stop and go on as the program does, by its statuses of waitpid(2)."""
    pidfd = os.pidfd_open(os.getppid())
    stopped = False

    def reflect(status: int) -> None:
        # From here and in this order, lest the front stop when the program goes on already. That it went on need not
        # be told where it has ended since.
        nonlocal stopped
        if os.WIFSTOPPED(status):
            _send(pidfd, signal.SIGSTOP)
        elif stopped:
            _send(pidfd, signal.SIGCONT)
        stopped = os.WIFSTOPPED(status)

    return reflect


def _send(pidfd: int, number: int) -> None:
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
