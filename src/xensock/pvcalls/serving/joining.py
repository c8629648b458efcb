"""Guests joined in memory: a connection to a listener of the same backend's guests.

Its bytes go from one ring to the other, by the mover; the kernel's TCP does not see them. What a program
can see is as TCP's: names, the listener's queue, half-close, resets. Policy and records do not differ
either: a connection is decided by its destination before it is known who listens there.

The connecting socket is bound to a port of the host all the same, so that nobody else has its name.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.calls.call import Verb
from xensock.pvcalls.serving import limits, moving, sharing
from xensock.pvcalls.serving.attempt import Way
from xensock.pvcalls.serving.held import Held, Joined, in_family
from xensock.pvcalls.serving.ports import loopback_of

if TYPE_CHECKING:
    from xensock.calls.address import IPAddress

RESET = True


def way(held: Held, end: Endpoint) -> Way | None:
    """How to connect to a listener of a guest; None where nobody of ours listens."""
    backend = held.guest.backend
    if backend.journal is not None:
        return None  # what is in memory would be lost with us; the kernel's connections are not
    inner = loopback_of(end.unmapped())
    listener = backend.ports.listener(inner)
    if end.scope or listener is None or listener.guest.point.consults(Verb.ACCEPT):
        return None  # hooks are asked about clients that the kernel's queue holds
    own = _own_name(held, inner)
    if own is None:
        return None
    joined = Joined(0, own, in_family(inner, held.family))

    def start(sock: socket.socket) -> int:
        listener = backend.ports.listener(inner)
        if listener is None:
            return errno.ECONNREFUSED
        return errno.EAGAIN if len(listener.queue) > listener.backlog else 0

    def prepare(held: Held) -> None:
        listener = backend.ports.listener(inner)
        assert listener is not None  # start() has just seen it
        sharing.share(held, listener.guest)

    def move(held: Held) -> None:
        listener = backend.ports.listener(inner)
        assert listener is not None
        token = 0
        if held.shared is None:
            token = _core.mover_join(backend.mover, moving.ring_end(held), None, True)
            moving.carried(held, token, 0)
        held.joined = Joined(token, joined.own, joined.peer, held.shared)
        listener.queue.append(held.joined.other(listener.family))
        # Whoever waits for a connection is served after the caller was answered.
        backend.loop.call_soon(listener.arrived)

    return Way(start, move, waits=True, prepare=prepare)


def accept(promised: Held, joined: Joined) -> None:
    """Give a connection of the queue to a parked ACCEPT. Raises ProcessLookupError when it has ended,
    OSError."""
    backend = promised.guest.backend
    promised.joined = joined
    if joined.shared is not None:
        try:
            joined.shared.enter(promised, 1)
        except OSError:  # one of the two does not read what it is sent
            raise limits.refuse(errno.ECONNABORTED) from None
        return
    _core.mover_join_other(backend.mover, joined.token, moving.ring_end(promised))
    moving.carried(promised, joined.token, 1)


def refuse(listener: Held, joined: Joined) -> None:
    """Reset a connection that nobody accepts any more."""
    if joined.shared is not None:
        joined.shared.release(1, reset=True)
        return
    with contextlib.suppress(ProcessLookupError):
        _core.mover_release(listener.guest.backend.mover, joined.token, RESET, 1)


def _own_name(held: Held, inner: Endpoint) -> Endpoint | None:
    """What the connecting socket is called, once it has a port; None where the kernel has to say."""
    at = in_family(inner, held.family)
    try:
        if not held.is_bound:
            # Binding to it is how one asks whether an address is this host's.
            held.host.bind((str(at.host), 0))
            held.guest.backend.ports.note(held)
            return Endpoint.from_python(held.host.getsockname())
        own = Endpoint.from_python(held.host.getsockname())
        if own.unmapped().host.is_unspecified:
            return Endpoint(at.host, own.port) if _is_ours(at.host) else None
    except OSError:
        return None
    # From loopback nothing leaves, and nothing comes there from elsewhere (ip(7)): the kernel says how.
    return own if own.unmapped().host.is_loopback == inner.host.is_loopback else None


def _is_ours(host: IPAddress) -> bool:
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((str(host), 0))
    return True
