"""A connection's bytes: from here on the mover's threads move them between socket and ring."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

from xensock import _core
from xensock.pvcalls.serving.held import Phase
from xensock.wire import indexes
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held


def ring_end(held: Held) -> _core.RingEnd:
    """The guest's end of a connection, for the mover."""
    ring = held.ring
    assert ring is not None
    events = Extension.DATA_EVENTS in held.guest.extensions
    urgent = Extension.URGENT in held.guest.extensions
    return ring.indexes, ring.data, ring.event.notify_fd, ring.event.wait_fd, events, urgent


def move(held: Held) -> None:
    """Give a connected socket and its ring to the mover. Raises OSError."""
    carried(held, join(held, os.dup(held.host.fileno())), 0)


def join(held: Held, fd: int) -> int:
    """Have the mover move between the guest's ring and a socket, which is taken: the token. Raises OSError."""
    page, data, notify_fd, wait_fd, events, urgent = ring_end(held)
    mover = held.guest.backend.mover
    return _core.mover_add_ring(
        mover, fd, page, data, "back", notify_fd, wait_fd, events, True, urgent
    )


def carried(held: Held, token: int, side: int) -> None:
    """The mover carries the socket's connection; the guest is that side of it."""
    held.token, held.side, held.phase = token, side, Phase.CONNECTED
    held.guest.backend.tokens.setdefault(token, []).append((held.guest.counters, side))


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
    _core.mover_release(backend.mover, held.token, reset, held.side)
    held.token = 0


def _unsent(held: Held) -> int:
    """Bytes in `out`, as the guest says: never more than there is room for."""
    ring = held.ring
    if ring is None or not ring.open:
        return 0
    cons, prod = (
        int.from_bytes(ring.indexes[at : at + 4], "little")
        for at in (indexes.OUT_CONS, indexes.OUT_PROD)
    )
    return indexes.queued(prod, cons, len(ring.data) // 2)


def reset_on_close(held: Held) -> None:
    """Have the connection end by a reset when its last descriptor is closed."""
    if held.sock is not None and held.kind == socket.SOCK_STREAM and held.family != socket.AF_UNIX:
        held.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


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
