"""A connection's bytes: from here on the mover's threads move them between socket and ring."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from xensock import _core
from xensock.pvcalls.serving.held import Phase
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held


def move(held: Held) -> None:
    """Give a connected socket and its ring to the mover. Raises OSError."""
    ring = held.ring
    assert ring is not None
    backend = held.guest.backend
    held.token = _core.mover_add_ring(
        backend.mover,
        os.dup(held.host.fileno()),
        ring.indexes,
        ring.data,
        "back",
        ring.event.notify_fd,
        ring.event.wait_fd,
        Extension.DATA_EVENTS in held.guest.extensions,
        True,
    )
    backend.tokens[held.token] = (held.guest.counters, held.side)
    held.phase = Phase.CONNECTED


def let_go(held: Held, *, reset: bool = False) -> None:
    """Take the ring away from the mover: what is left in it is delivered in the background, then the
    connection ends in order, or with `reset`."""
    if held.token:
        _core.mover_release(held.guest.backend.mover, held.token, reset, held.side)
        held.token = 0


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
