"""Requests that another backend had received and not answered: what it had done of them already is not done twice."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock.calls.address import AddressError, Endpoint
from xensock.calls.call import Decision, Verb
from xensock.pvcalls.serving import attempt, connecting, listening, unix
from xensock.pvcalls.serving.addresses import endpoint, name_of
from xensock.pvcalls.serving.held import Phase
from xensock.wire import requests
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from xensock.calls.record import Outcome
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held


BEFORE = Decision(True, "rules that were in force before")


def done(guest: Guest, call: Call, request: requests.Request) -> bool:
    """Answer a request that was carried out; False where it is to be carried out (again), which comes to the same."""
    held = guest.sockets.get(request.id)
    names = Extension.NAMES in guest.extensions
    match request:
        case requests.Socket() if held is not None:
            call.answer()
        case requests.Release() | requests.Close() if held is None:
            call.answer()
        case requests.Connect() if held is not None and _made(held, call):
            record_connect(guest, call, held, request)
            attempt.answer(guest, call, held, 0)
        case requests.Bind() if held is not None and _is_bound(held, request.address):
            guest.backend.ports.note(held)
            response = call.response()
            if names:
                response = response.with_address(name_of(held.host.getsockname()))
            call.send(response)
        case requests.Accept() if _made(guest.sockets.get(request.new_id), call):
            accepted = guest.sockets[request.new_id]
            client = str(Endpoint.from_sockaddr(accepted.client))
            by = listening.ACCEPTED
            guest.record(call, Verb.ACCEPT, client, by, 0, outcome="guest", begun=accepted)
            response = call.response()
            if names:
                response = response.with_address(accepted.client)
            call.send(response)
        case requests.Attach() if held is not None and held.ring is not None:
            call.answer()
        case _:
            return False
    return True


def _made(held: Held | None, call: Call) -> bool:
    """Whether a socket was connected by just this request."""
    return held is not None and held.phase == Phase.CONNECTED and held.made == call.slot


def record_connect(guest: Guest, call: Call, held: Held, request: requests.Connect) -> None:
    """Record a CONNECT that was carried out: whoever did so was killed, perhaps before it was recorded."""
    with suppress(OSError):
        if held.family == socket.AF_UNIX:
            path = unix.path_of(guest, request)
            target, decision, own = f"unix:{path}", guest.point.policy.unix(path), False
        else:
            end = endpoint(held, request.address)
            target, (decision, own) = str(end), connecting.decide(guest, end)
        if not decision.allowed:
            decision = BEFORE
        outcome: Outcome | None = "guest" if own else None
        guest.record(call, Verb.CONNECT, target, decision, 0, outcome=outcome, begun=held)


def undo(guest: Guest, request: requests.Request) -> None:
    """A repeated request is refused: a CONNECT leaves no connection then that the other backend had begun."""
    held = guest.sockets.get(request.id)
    if isinstance(request, requests.Connect) and held is not None and held.phase == Phase.FRESH:
        attempt.dissolve(held)


def _is_bound(held: Held, address: bytes) -> bool:
    """Whether a socket has the port that a BIND asks for; any, where that asks for none."""
    if not held.is_bound:
        return False
    try:
        wanted = Endpoint.from_sockaddr(address).port
    except AddressError:
        return False
    return wanted in (0, held.host.getsockname()[1])
