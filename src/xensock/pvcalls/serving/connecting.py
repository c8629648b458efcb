"""CONNECT: decided, the ring mapped, then connected without anybody waiting for it."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.call import Decision, Protocol, Verb
from xensock.pvcalls.serving import asking, attempt, datagrams, joining, redirecting, strictly, unix
from xensock.pvcalls.serving.addresses import OWN, endpoint
from xensock.pvcalls.serving.held import Phase
from xensock.pvcalls.serving.limits import refuse

if TYPE_CHECKING:
    from xensock.calls.address import Endpoint
    from xensock.calls.record import Outcome
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.wire.requests import Connect


def connect(guest: Guest, call: Call, request: Connect) -> None:
    """Connect a stream, or set the peer of a datagram socket."""
    held = guest.held(request.id)
    if held.kind == socket.SOCK_DGRAM:
        datagrams.connect(guest, call, held, request)
        return
    if held.phase == Phase.CONNECTING:
        raise refuse(errno.EALREADY)
    if held.phase != Phase.FRESH:
        raise refuse(errno.EISCONN)
    if held.family == socket.AF_UNIX:
        unix.connect(guest, call, held, request)
        return
    end = endpoint(held, request.address)
    decision, own = held.decided = decide(guest, end)
    if not decision.allowed:
        guest.record(call, Verb.CONNECT, str(end), decision, decision.error)
        call.fail(decision.error)
        return

    terms = strictly.terms(guest, end.unmapped(), decision) if not own else None
    if isinstance(terms, Decision):
        guest.record(call, Verb.CONNECT, str(end), terms, terms.error)
        call.fail(terms.error)
        return

    far = None
    if not own and (decision.redirect is not None or decision.via):
        by = redirecting.carriers(guest.backend.elsewhere, decision)
        to = end if decision.redirect is None else decision.redirect
        far = redirecting.Far(held, end, to, terms, by)

    def done(error: int) -> None:
        if far is not None:
            far.close()
        outcome: Outcome | None = "guest" if own else None
        said = decision
        if far is not None:
            held.decided = said, _ = far.said(decision), own
        guest.record(call, Verb.CONNECT, str(end), said, error, outcome=outcome, begun=held)

    if decision is asking.SERVED:
        way = asking.way(held, end)
    elif far is not None:
        way = far.way
    elif terms is not None:
        way = attempt.Way(lambda sock: start(sock, end), lambda held: strictly.move(held, terms))
    else:
        way = joining.way(held, end) or attempt.Way(lambda sock: start(sock, end))
    attempt.begin(guest, call, held, request, way, done)
    if far is not None:
        held.decided = far.said(decision), own


def decide(guest: Guest, end: Endpoint) -> tuple[Decision, bool]:
    """The policy's decision, and whether the destination is the guest itself: its own listener on
    the loopback comes before what the host has there. Names are asked for without a rule, each is
    decided by itself."""
    inner = end.unmapped()
    if guest.backend.ports.is_own(guest, inner):
        return OWN, True
    if end.port == asking.PORT:
        return asking.SERVED, False
    return guest.point.connect(Protocol.TCP, inner, guest.transport.pid), False


def start(sock: socket.socket, end: Endpoint) -> int:
    """Start connecting a non-blocking socket; 0, EINPROGRESS, or the errno of connect(2)."""
    return _core.connect_start(sock.fileno(), end.sockaddr(), 0)
