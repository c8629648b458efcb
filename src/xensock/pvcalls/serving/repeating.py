"""Requests that another backend had received and not answered: what it had done of them already is not done twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xensock.calls.address import AddressError, Endpoint
from xensock.pvcalls.serving import attempt
from xensock.pvcalls.serving.addresses import name_of, peer_name
from xensock.pvcalls.serving.held import Phase
from xensock.wire import requests
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held


def done(guest: Guest, call: Call, request: requests.Request) -> bool:
    """Answer a request that was carried out; False where it is to be carried out (again), which comes to the same."""
    held = guest.sockets.get(request.id)
    names = Extension.NAMES in guest.extensions
    match request:
        case requests.Socket() if held is not None:
            call.answer()
        case requests.Release() | requests.Close() if held is None:
            call.answer()
        case requests.Connect() if held is not None and held.phase == Phase.CONNECTED:
            attempt.answer(guest, call, held, 0)
        case requests.Bind() if held is not None and _is_bound(held, request.address):
            guest.backend.ports.note(held)
            response = call.response()
            if names:
                response = response.with_address(name_of(held.host.getsockname()))
            call.send(response)
        case requests.Accept() if request.new_id in guest.sockets:
            accepted = guest.sockets[request.new_id]
            response = call.response()
            if names:
                try:
                    response = response.with_address(peer_name(accepted))
                except OSError:  # it has ended since
                    response = response.with_address(name_of(accepted.host.getsockname()))
            call.send(response)
        case requests.Attach() if held is not None and held.ring is not None:
            call.answer()
        case _:
            return False
    return True


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
