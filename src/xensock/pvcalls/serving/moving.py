"""A connection's bytes: from here on the mover's threads move them between socket and ring."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from xensock import _core
from xensock.pvcalls.serving import counting
from xensock.pvcalls.serving.held import Phase
from xensock.wire import indexes
from xensock.wire.extensions import Extension
from xensock.wire.requests import How

if TYPE_CHECKING:
    from xensock.pvcalls.backend import Backend
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held
    from xensock.pvcalls.serving.rings import MappedRing


RESET = struct.pack("ii", 1, 0)  # struct linger: close(2) resets


def ring_end(held: Held) -> _core.RingEnd:
    """The guest's end of a connection, for the mover."""
    ring = held.ring
    assert ring is not None
    events = Extension.DATA_EVENTS in held.guest.extensions
    urgent = Extension.URGENT in held.guest.extensions
    return ring.indexes, ring.data, ring.event.notify_fd, ring.event.wait_fd, events, urgent


def move(held: Held) -> None:
    """Give a connected socket and its ring to the mover. Raises OSError."""
    if held.guest.journal is not None:
        _begin(held)
    carried(held, join(held, os.dup(held.host.fileno())), 0)


def _begin(held: Held) -> None:
    """Note where the mover begins, before it does."""
    ring = held.ring
    assert ring is not None
    if held.family != socket.AF_UNIX:
        now = counting.counts(held.host)
        out, into = (_word(ring, at) for at in (indexes.OUT_CONS, indexes.IN_PROD))
        # An end that came already is counted once more when the counts are looked at again.
        given = now.given - (now.state in counting.HAS_END)
        held.start = now.taken, given, out, into
    held.phase = Phase.CONNECTED
    held.guest.keep(held)


def _word(ring: MappedRing, at: int) -> int:
    return int.from_bytes(ring.indexes[at : at + 4], "little")


def join(held: Held, fd: int, start: tuple[int, int, bool, int, int] | None = None) -> int:
    """Have the mover move between the guest's ring and a socket, which is taken: the token. `start`: where it goes on,
    as _core.mover_add_ring has it. Raises OSError."""
    page, data, notify_fd, wait_fd, events, urgent = ring_end(held)
    mover = held.guest.backend.mover
    return _core.mover_add_ring(
        mover, fd, page, data, "back", notify_fd, wait_fd, events, True, urgent, start
    )


def carried(held: Held, token: int, side: int) -> None:
    """The mover carries the socket's connection; the guest is that side of it."""
    held.token, held.side, held.phase = token, side, Phase.CONNECTED
    held.guest.backend.tokens.setdefault(token, []).append((held.guest.counters, side))
    if held.start is None:
        held.guest.keep(held)  # else it was noted before


def let_go(held: Held, *, reset: bool = False) -> None:
    """Take the ring away from the mover: what is left in it is delivered in the background, then the
    connection ends in order, or with `reset`."""
    if held.shared is not None:
        held.shared.release(held.side, reset=reset)
    if not held.token:
        return
    backend = held.guest.backend
    waiting = _unsent(held)
    if waiting and not reset and not backend.lingering.admit((held.token, held.side), waiting):
        reset = True
        reset_on_close(held)
    start, sock = held.start, held.sock
    kept = start is not None and sock is not None
    rest = _core.mover_release(backend.mover, held.token, reset, held.side, kept)
    if rest is not None and start is not None and sock is not None:
        note_rest(backend, held.token, sock, rest, reset, start)
    held.token = 0


def note_rest(
    backend: Backend,
    token: int,
    sock: socket.socket,
    rest: tuple[int, int, int, int],
    reset: bool,
    start: tuple[int, int, int, int],
) -> None:
    """Note what the mover still delivers for a connection that was released, so that a successor could."""
    memory, fd, length, index = rest
    journal = backend.journal
    try:
        now = counting.counts(sock)
    except OSError:
        journal = None
    if journal is None:
        os.close(memory)
        return
    taken = now.taken - (now.state in counting.SENT_END) - start[0]
    begin = start[0] + taken - ((start[2] + taken - index) & 0xFFFFFFFF)
    kept = fd, counting.cookie(sock), memory, length, begin, reset
    backend.rests[token] = kept
    journal.note("rest", token, *kept)


def _unsent(held: Held) -> int:
    """Bytes in `out`, as the guest says: never more than there is room for."""
    ring = held.ring
    if ring is None or not ring.open:
        return 0
    cons, prod = (_word(ring, at) for at in (indexes.OUT_CONS, indexes.OUT_PROD))
    return indexes.queued(prod, cons, len(ring.data) // 2)


def shutdown(held: Held, how: int) -> None:
    """End one direction or both, after what is in `out` now. Raises ProcessLookupError where the connection ended."""
    if how != How.RD and held.stop < 0 and held.start is not None and held.ring is not None:
        held.stop = _word(held.ring, indexes.OUT_PROD)
        held.guest.keep(held)
    _core.mover_shutdown(held.guest.backend.mover, held.token, how, held.side)


def reset_on_close(held: Held) -> None:
    """Have the connection end by a reset when its last descriptor is closed."""
    if held.sock is not None and held.kind == socket.SOCK_STREAM and held.family != socket.AF_UNIX:
        held.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


class Lingering:
    """Connections whose guests have released them, and the bytes of theirs in our memory."""

    def __init__(self, most: tuple[int, int]) -> None:
        self._bytes, self._count = most
        self._waiting: dict[tuple[int, int], int] = {}
        self._sum = 0

    def admit(self, token: tuple[int, int], waiting: int) -> bool:
        """Whether so many bytes of a side may wait; if so they count until `ended`."""
        if self._sum + waiting > self._bytes or len(self._waiting) >= self._count:
            return False
        self._waiting[token] = waiting
        self._sum += waiting
        return True

    def ended(self, token: int) -> None:
        """A connection has ended."""
        for side in (0, 1):
            self._sum -= self._waiting.pop((token, side), 0)


def forget(guest: Guest, held: Held) -> None:
    """Close our part of a socket that the mover has let go of."""
    if guest.sockets.get(held.id) is held:
        if guest.journal is not None:
            guest.journal.note("dropped", guest.number, held.id)
        del guest.sockets[held.id]
    guest.backend.ports.forget(held)
    if held.close is not None:
        held.close()
        held.close = None
    if held.ring is not None:
        held.ring.release()
        held.ring = None
    if held.sock is not None:
        held.sock.close()
        held.sock = None
