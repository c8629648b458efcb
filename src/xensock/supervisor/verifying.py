"""Connections whose first bytes must name a host before any byte leaves.

Theory of operation: the guest's side is established, the far side is dialled, and nothing is moved. What the guest
sends is looked at where it lies (MSG_PEEK) until it names a host, a few hundred bytes as a rule. Named rightly, both
ends go to the mover, which finds every byte; else both are reset, and the far side has not seen one.

Rules
- Bounded: `firstbytes.LONGEST` bytes, PATIENCE seconds. A connection that the guest closes without a byte just ends.
- A guest that waits for the server to speak first waits in vain: nothing is passed on before.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock import _core
from xensock.loop import IN, Loop
from xensock.supervisor.firstbytes import LONGEST, PARSERS, UnnamedError
from xensock.supervisor.relay_ends import reset

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    from xensock.supervisor.relay_client import Ended

PATIENCE = 10.0
_AGAIN = 0.05  # seconds until another look where nothing came that could be waited for
_END = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


def abort(sock: socket.socket) -> None:
    """Close with RST at once, whoever else holds the file: AF_UNSPEC dissolves a connection (tcp_disconnect)."""
    _core.connect_start(sock.fileno(), bytes(16), 0)
    reset(sock)


@dataclass(frozen=True, slots=True)
class Check:
    """What the first bytes must be: of which protocol, naming a host for which `right` is True. `refused` is told why
    they are not."""

    protocol: Literal["sni", "host"]
    right: Callable[[str], bool]
    refused: Callable[[str], None]


@dataclass(slots=True, eq=False)
class _Held:
    guest: socket.socket
    far: socket.socket
    check: Check
    passed: Callable[[], None]
    ended: Ended
    fds: tuple[int, int] = (-1, -1)
    seen: int = 0
    over: bool = False


class Verifier:
    """Holds connections back on the loop's thread. Methods may be called from any thread."""

    def __init__(self, loop: Loop, patience: float = PATIENCE) -> None:
        self._loop = loop
        self._patience = patience
        self._lock = threading.RLock()
        self._held: set[_Held] = set()

    def hold(
        self,
        guest: socket.socket,
        far: socket.socket,
        check: Check,
        passed: Callable[[], None],
        ended: Ended,
    ) -> None:
        """Call passed() once the first bytes are right; until then both sockets are ours. Else they are reset and
        ended() is called."""
        held = _Held(guest, far, check, passed, ended)
        held.fds = (guest.fileno(), far.fileno())
        guest.setblocking(False)
        with self._lock:
            self._held.add(held)
            self._loop.add(held.fds[0], IN | _END, lambda events: self._look(held, events))
            self._loop.add(held.fds[1], _END & ~select.EPOLLRDHUP, lambda _: self._far(held))
        self._loop.later(self._patience, lambda: self._late(held))

    def live(self) -> int:
        """How many connections are held."""
        with self._lock:
            return len(self._held)

    def close(self) -> None:
        """Reset what is held."""
        with self._lock:
            for held in list(self._held):
                self._let_go(held, errno.ECONNRESET)

    def _look(self, held: _Held, events: int) -> None:
        with self._lock:
            if held.over:
                return
            try:
                data = held.guest.recv(LONGEST, socket.MSG_PEEK)
            except BlockingIOError:
                data = b""
                if not events & _END:
                    return
            except OSError as error:
                self._let_go(held, error.errno or errno.EIO)
                return
            if not data:
                self._let_go(held, 0)  # it was closed, and nothing said
                return
            try:
                found = PARSERS[held.check.protocol](data)
            except UnnamedError as error:
                self._refuse(held, str(error))
                return
            if isinstance(found, str):
                if held.check.right(found):
                    self._pass(held)
                else:
                    self._refuse(held, f"they name {found}")
            elif events & _END or found > LONGEST:
                self._refuse(held, "they end before they name a host")
            else:
                self._wait(held, len(data), found)

    def _wait(self, held: _Held, seen: int, needed: int) -> None:
        """Until so many bytes are there."""
        if seen > held.seen:
            held.seen = seen
            held.guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)
            return
        # Readable and not more: the kernel is short of memory, or urgent data is in the way.
        self._loop.remove(held.fds[0])

        def again() -> None:
            with self._lock:
                if not held.over:
                    look = lambda events: self._look(held, events)  # noqa: E731
                    self._loop.add(held.fds[0], IN | _END, look)

        self._loop.later(_AGAIN, again)

    def _far(self, held: _Held) -> None:
        with self._lock:
            if not held.over:
                error = held.far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self._let_go(held, error or errno.ECONNRESET)

    def _late(self, held: _Held) -> None:
        with self._lock:
            if not held.over:
                self._refuse(held, f"they did not come within {self._patience:g} seconds")

    def _refuse(self, held: _Held, why: str) -> None:
        self._let_go(held, errno.ECONNRESET)
        held.check.refused(why)

    def _pass(self, held: _Held) -> None:
        self._forget(held)
        held.guest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
        held.passed()

    def _let_go(self, held: _Held, error: int) -> None:
        self._forget(held)
        if error:
            abort(held.guest)
            abort(held.far)
        else:
            held.guest.close()
            held.far.close()
        held.ended(0, 0, error)

    def _forget(self, held: _Held) -> None:
        held.over = True
        self._held.discard(held)
        for fd in held.fds:
            self._loop.remove(fd)
