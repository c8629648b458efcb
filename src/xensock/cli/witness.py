"""A process of the job beside the front, which tells whether a signal was the whole job's.

Theory of operation: the program has whatever is sent to the job's process group (the terminal's keys, a shell's
`kill %1`), and must not be given it again; what is sent to the front alone must be passed on. A signal does not say
which of the two it was, but in the first case the witness has it, too. The kernel sends to a group under the lock of
the list of processes, which setpgid(2) takes: when that has returned, everybody of the group has what the front has.
But SIGCONT and the signals that stop take each other out of what is pending (signal(7)): where the front has taken one
and the other came to the group since, that is the job's last word, and the first is not passed on behind it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections import Counter
from contextlib import suppress

from xensock.streams import let_go

STOPPED_S = 0.02  # no answer for so long: see whether it is stopped
ALL = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
_STOPS = (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_OPPOSITE: dict[int, tuple[int, ...]] = {
    signal.SIGCONT: _STOPS,
    **{each: (signal.SIGCONT,) for each in _STOPS},
}


class Witness:
    """Started by `start`; ends with the process that did so, at the latest."""

    def __init__(self, pid: int, link: socket.socket) -> None:
        self.pid = pid
        self._link = link

    def saw(self, number: int) -> bool:
        """Whether a signal that came here went to the whole process group."""
        with suppress(PermissionError):  # of a session's leader; the lock was taken
            os.setpgid(0, os.getpgrp())
        try:
            self._link.send(bytes([number]))
            while not select.select([self._link], [], [], STOPPED_S)[0]:
                if os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT):
                    # It stopped with the job, and this process alone was continued.
                    os.kill(self.pid, signal.SIGCONT)
            return self._link.recv(1) == b"\1"
        except OSError:  # somebody killed it
            return False

    def end(self) -> None:
        """Kill it, stopped or not, and take its status: of a process that has ended nothing is left."""
        self._link.close()
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def start(*others: socket.socket) -> Witness:
    """Start the witness. Every signal must be blocked here; it closes `others`, and holds no input and output."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    front = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            for sock in (near, *others):
                sock.close()
            let_go(0, 1, 2)
            _watch(far, front)
        finally:
            os._exit(0)
    far.close()
    return Witness(pid, near)


def _watch(link: socket.socket, front: int) -> None:
    seen: Counter[int] = Counter()
    while asked := link.recv(1):
        while (info := signal.sigtimedwait(ALL, 0)) is not None:
            if info.si_pid != front:  # which continues this process
                seen[info.si_signo] += 1
                for other in _OPPOSITE.get(info.si_signo, ()):
                    seen[other] = 0
        number = asked[0]
        came = (number, *_OPPOSITE.get(number, ()))
        link.send(b"\1" if any(seen[each] for each in came) else b"\0")
        seen[number] = max(seen[number] - 1, 0)
