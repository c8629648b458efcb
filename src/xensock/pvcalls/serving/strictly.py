"""Connections whose rule verifies their first bytes or limits them: they pass through somebody who sees to that.

The ring is joined with one end of a pair of sockets of ours; the other end and the far side are the backend's, which
moves bytes between them as the rule says. Guests of one backend are not joined in memory then.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Protocol

from xensock.pvcalls.serving import moving

if TYPE_CHECKING:
    from xensock.calls.address import Endpoint
    from xensock.calls.call import Decision
    from xensock.policy.point import Point
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held


class Strictness(Protocol):
    """Who carries such connections (backend.strict has the one of this host)."""

    def terms(
        self, point: Point, end: Endpoint, decision: Decision, pid: int, program: str
    ) -> object:
        """What the rule says of a connection, or the refusal: a Decision."""
        ...

    def join(self, near: socket.socket, far: socket.socket, terms: object) -> None:
        """Move bytes between two sockets, which are its own from now on, as the rule says."""
        ...


def terms(guest: Guest, end: Endpoint, decision: Decision) -> object:
    """What an allowed connection's rule says beside its way; None: nothing. A Decision: the refusal."""
    if decision.limit is None and decision.verify is None:
        return None
    strict = guest.backend.strict
    if strict is None:
        # Nobody here could see to it.
        from xensock.policy.grants import unable

        return unable(decision)
    return strict.terms(guest.point, end, decision, guest.transport.pid, guest.program)


def outer(guest: Guest, far: socket.socket, terms: object) -> socket.socket:
    """What the ring is joined with, for a far side: that itself where its rule says nothing. Raises OSError."""
    if terms is None:
        return far
    strict = guest.backend.strict
    assert strict is not None  # terms() has seen it
    try:
        near, inner = pair()
    except OSError:
        far.close()
        raise
    strict.join(inner, far, terms)
    return near


def move(held: Held, terms: object) -> None:
    """As moving.move. Raises OSError."""
    far = socket.socket(fileno=os.dup(held.host.fileno()))
    near = outer(held.guest, far, terms)
    moving.carried(held, moving.join(held, near.detach()), 0)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, of TCP: unlike a pair of unix sockets, they tell a reset from an end. Raises OSError."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        near = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            near.connect(listener.getsockname())
            while True:
                listener.settimeout(1)
                inner, address = listener.accept()
                if address == near.getsockname():
                    near.setblocking(False)
                    inner.setblocking(False)
                    return near, inner
                inner.close()  # a stranger
        except BaseException:
            near.close()
            raise
