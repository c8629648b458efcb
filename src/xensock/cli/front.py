"""The front of `xensock run`: the process that the shell knows.

Theory of operation: the front stays in the shell's job and so does the program; the backend, forked from the front,
leaves it for a process group of its own, where neither the terminal's keys nor a guest's kill(0, …) reach it. Keys
therefore act on the program as natively. A signal that somebody sends to the front alone (kill(2), not the terminal)
is passed on. The front ends with the backend's status.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SI_KERNEL = 0x80
PASSED_ON = {
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM,
    signal.SIGWINCH,
}  # fmt: skip
FAILURE = 125


def run(
    backend: Callable[[int, socket.socket], int], beside: Callable[[], None] = lambda: None
) -> int:
    """Fork the backend, call it there with the job's process group and a socket to here; return its exit status.
    `beside` is called here meanwhile."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    group = os.getpgrp()
    # Before the fork, so that no signal is lost between.
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON | {signal.SIGCHLD})
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        status = FAILURE
        try:
            near.close()
            _leave_the_job()
            status = backend(group, far)
        finally:
            sys.stderr.flush()
            os._exit(status)
    far.close()
    with near:
        _let_go()
        beside()
        return _wait(pid, near)


def _leave_the_job() -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON | {signal.SIGCHLD})


def _let_go() -> None:
    """Only the program holds its input and output; the backend reports on stderr."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def _wait(pid: int, backend: socket.socket) -> int:
    while True:
        info = signal.sigwaitinfo(PASSED_ON | {signal.SIGCHLD})
        if info.si_signo == signal.SIGCHLD:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else FAILURE
            early = _early_status(backend)
            if early is not None:
                return early
        elif (
            info.si_code != SI_KERNEL
        ):  # the terminal's own signals have reached the program already
            try:
                backend.send(bytes([info.si_signo]))
            except BrokenPipeError:
                continue


def _early_status(backend: socket.socket) -> int | None:
    try:
        return (backend.recv(1, socket.MSG_DONTWAIT) or b"\x7d")[0]
    except BlockingIOError:
        return None


def detacher(front: socket.socket, quiet: bool) -> Callable[[int], None]:
    """For the backend: lets the front end with a status while processes of the guest go on, as daemons do.

    `quiet`: nothing more will be said on stderr, so that its reader sees its end.
    """

    def detach(code: int) -> None:
        if quiet:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, 2)
            os.close(null)
        front.send(bytes([code]))
        os.kill(os.getppid(), signal.SIGCHLD)  # the front sleeps in sigwaitinfo

    return detach
