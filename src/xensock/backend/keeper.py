"""What keeps the guests over rings of a backend that is killed: a process that shares its table of descriptors.

Theory of operation
    The keeper is made by the backend (clone(2), CLONE_FILES) and does nothing but have the table: whatever the backend
    opens is open there at once, with the same number, and stays open when the backend is killed. The holder has the
    other end of its socket; through it the next backend asks for the descriptors, the journal
    that names them first (`pvcalls.keeping`). When the holder lets go of that end, the keeper ends: so it does when the
    next backend has what it needs, and when the holder is gone, too.

    The next backend makes a keeper of its own before it asks. That it takes over is one message to the holder, by which
    that lets go of the old one: until then that counts, as the first of two, from then on the new one.
"""

from __future__ import annotations

import array
import errno
import logging
import os
import select
import signal
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock import _core
from xensock.backend.learned import Learned
from xensock.backend.names import GuestNames
from xensock.backend.store import Store, inherited
from xensock.pvcalls import keeping
from xensock.pvcalls.takeover import Takeover

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xensock.pvcalls.backend import Backend
    from xensock.pvcalls.serving.guest import Guest
    from xensock.transport.local_back import LocalListener

RINGS = "rings-"  # and a number: a keeper's name in the holder's store
JOURNAL = -1  # the number that the journal has for whoever does not know it
MOST = 250  # XS_KEPT_MOST of core/keeper.h
PATIENCE_S = 10.0
END_S = 1.0  # for an old keeper to end
WALL = 0x40000000  # __WALL of wait(2): the keeper's end is told by no signal
_PID = struct.Struct("=i")
log = logging.getLogger("xensock.backend")


class Keeper:
    """The keeper of a backend's descriptors, from `start` to `close`."""

    def __init__(self, backend: Backend, listeners: Iterable[LocalListener] = ()) -> None:
        """`listeners`: where guests come to, who were perhaps taken from the queue and not served yet."""
        self._backend = backend
        self._listeners = list(listeners)
        self._store = Store()
        self._journal = backend.keep()
        self._name = ""
        self._number = 0
        self._pid = 0
        self._pidfd = -1
        self._sock: socket.socket | None = None
        self._newcomers: list[tuple[LocalListener, socket.socket]] = []
        backend.keep_names = keep_names

    def start(self) -> None:
        """Keep what this backend will have, and go on with what its predecessor had. Raises OSError."""
        before = _before()
        self._number = max((number for number, _ in before), default=0)
        self._begin()
        takeover = None
        ends: list[int] = []
        for _, fd in before:
            with socket.socket(fileno=fd) as old:
                takeover = self._take_over(old, ends, takeover)
        try:
            self._journal.rewrite()
        except OSError as error:  # guests are served all the same
            self._journal.lose(error)
        for number, _ in reversed(before):  # last the one that counts
            self._store.drop(f"{RINGS}{number}")
        _wait(ends)
        if takeover is not None:
            takeover.end()
        for listener, sock in self._newcomers:
            try:
                self._backend.serve(listener.admit(sock))
            except PermissionError as error:
                log.warning("%s", error)

    def close(self) -> None:
        """Keep nothing any more."""
        self._store.drop(self._name)
        self._store.close()
        if self._pid:
            with suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)
            self._let_go()

    def _begin(self) -> None:
        """Make the process. Raises OSError."""
        ours, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock = ours
        self._number += 1
        self._name = f"{RINGS}{self._number}"
        with others:  # closed before: the process, too, has whatever is open here
            if not self._store.keep(self._name, others.fileno()):
                raise OSError(errno.ECONNREFUSED, "the holder is gone")
        self._pid = _core.keeper_start(ours.fileno(), self._journal.fd)
        self._pidfd = os.pidfd_open(self._pid)
        self._backend.loop.add_reader(self._pidfd, self._again)

    def _again(self) -> None:
        """Somebody killed the process."""
        self._let_go()
        dead = self._name
        try:
            self._begin()
        except OSError as error:
            log.error("nobody keeps the sockets of guests over rings any more: %s", error.strerror)
        self._store.drop(dead)

    def _let_go(self) -> None:
        if self._pidfd >= 0:
            self._backend.loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
        if self._pid:
            with suppress(OSError):
                os.waitpid(self._pid, WALL)
        if self._sock is not None:
            self._sock.close()
        self._pid, self._pidfd, self._sock = 0, -1, None

    def _take_over(
        self, old: socket.socket, ends: list[int], takeover: Takeover | None
    ) -> Takeover | None:
        """Take what a keeper has, unless another had it. `ends`: gets a pidfd of it."""
        old.settimeout(PATIENCE_S)
        try:
            pid, there = _ask(old, [JOURNAL])
            ends.append(os.pidfd_open(pid))
            try:
                kept = keeping.read(there[JOURNAL])
            finally:
                os.close(there[JOURNAL])
            if takeover is not None:
                return takeover
            wanted = kept.descriptors()
            _, here = _ask(old, wanted)
            _, strays = _ask(old, _sockets(pid) - wanted)
            others = [fd for fd in strays.values() if not self._is_newcomer(fd)]
        except Exception:  # whatever another version has written there: others are to be served
            log.exception("guests over rings cannot be taken over")
            return takeover
        takeover = Takeover(self._backend, here)
        try:
            takeover.begin(kept, others)
        except Exception:
            log.exception("guests over rings cannot be taken over")
            takeover.give_up()
        return takeover

    def _is_newcomer(self, fd: int) -> bool:
        """Whether a socket is a guest's whom nobody has heard yet; then it is taken."""
        sock = socket.socket(fileno=fd)
        for listener in self._listeners:
            if listener.took(sock):
                self._newcomers.append((listener, sock))
                return True
        sock.detach()
        return False


def _before() -> list[tuple[int, int]]:
    """The keepers that there are: their numbers and sockets. One with a higher number has perhaps not all yet."""
    names = {name: fd for name, fd in inherited().items() if name.startswith(RINGS)}
    return sorted((int(name.removeprefix(RINGS)), fd) for name, fd in names.items())


def keep_names(guest: Guest, fd: int = -1) -> None:
    """Keep what a guest learns from its resolver in a file, which is taken, or a new one."""
    if not isinstance(guest.names, GuestNames):
        return
    guest.names_fd = fd if fd >= 0 else os.memfd_create("xensock-names", os.MFD_CLOEXEC)
    learned = Learned(guest.names.names, guest.names_fd)

    def leave() -> None:
        learned.close()
        os.close(guest.names_fd)

    guest.leave_names = leave


def _ask(keeper: socket.socket, numbers: Iterable[int]) -> tuple[int, dict[int, int]]:
    """The keeper's process number, and its descriptors of these numbers, as far as there are any."""
    pid = 0
    found: dict[int, int] = {}
    wanted = sorted(numbers)
    for at in range(0, len(wanted), MOST):
        part = wanted[at : at + MOST]
        keeper.send(array.array("i", part))
        answer, fds, _, _ = socket.recv_fds(keeper, _PID.size + MOST, MOST, socket.MSG_CMSG_CLOEXEC)
        if len(answer) != _PID.size + len(part):
            raise OSError("the process that kept them is gone")
        (pid,) = _PID.unpack_from(answer)
        there = [number for number, has in zip(part, answer[_PID.size :], strict=True) if has]
        if len(there) != len(fds):
            raise OSError("this process may not have as many descriptors")
        found.update(zip(there, fds, strict=True))
    return pid, found


def _wait(ends: list[int]) -> None:
    """Wait for old keepers to end: what they have is still open, ports are taken. `ends`: pidfds, which are closed."""
    deadline = time.monotonic() + END_S
    for fd in ends:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(max(deadline - time.monotonic(), 0) * 1000):
            log.warning(
                "the process that kept sockets until now does not end; their ports stay taken"
            )
        os.close(fd)


def _sockets(pid: int) -> set[int]:
    """The numbers of all sockets of a process."""
    found = set()
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                    found.add(int(name))
    return found
