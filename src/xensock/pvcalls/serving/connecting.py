"""CONNECT: decided, the ring mapped, then connected without anybody waiting for it."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import AddressError, Endpoint
from xensock.calls.call import Decision, Protocol, Verb
from xensock.pvcalls.serving import datagrams, moving, unix
from xensock.pvcalls.serving.held import Held, Phase
from xensock.pvcalls.serving.limits import refuse
from xensock.pvcalls.serving.rings import map_ring
from xensock.wire.errors import to_wire
from xensock.wire.extensions import Extension
from xensock.wire.requests import ConnectFlag

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Callable

    from xensock.calls.record import Outcome
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.wire.requests import Connect

RETRY = 0.01  # seconds between attempts at a unix socket's listener whose queue is full
OWN = Decision(True, "the guest's own loopback")


def endpoint(held: Held, address: bytes) -> Endpoint:
    """The endpoint in a request. Raises OSError as connect(2) and bind(2) do: EINVAL when it is too
    short, EAFNOSUPPORT for an address of another family than the socket's."""
    try:
        end = Endpoint.from_sockaddr(address)
    except AddressError as error:
        raise refuse(error.errno) from error
    if end.family != held.family:
        raise refuse(errno.EAFNOSUPPORT)
    return end


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
    decision, own = decide(guest, end)
    if not decision.allowed:
        guest.record(call, Verb.CONNECT, str(end), decision, decision.error)
        call.fail(decision.error)
        return

    def done(error: int) -> None:
        outcome: Outcome | None = "guest" if own else None
        guest.record(call, Verb.CONNECT, str(end), decision, error, outcome=outcome)

    begin(guest, call, held, request, lambda sock: start(sock, end), done)


def decide(guest: Guest, end: Endpoint) -> tuple[Decision, bool]:
    """The policy's decision, and whether the destination is the guest itself: its own listener on
    the loopback comes before what the host has there."""
    inner = end.unmapped()
    if guest.backend.ports.is_own(guest, inner):
        return OWN, True
    return guest.point.connect(Protocol.TCP, inner), False


def start(sock: socket.socket, end: Endpoint) -> int:
    """Start connecting a non-blocking socket; 0, EINPROGRESS, or the errno of connect(2)."""
    return _core.connect_start(sock.fileno(), end.sockaddr(), 0)


def begin(
    guest: Guest,
    call: Call,
    held: Held,
    request: Connect,
    start: Callable[[socket.socket], int],
    done: Callable[[int], None],
) -> None:
    """Map the ring and connect; `start` begins and may say EINPROGRESS, `done` is told the errno of
    the attempt once it ended. Raises OSError for a ring that cannot be mapped."""
    held.ring = map_ring(guest, request.ref, request.port)
    asynchronous = bool(request.flags & ConnectFlag.ASYNC) and (
        Extension.ASYNC_CONNECT in guest.extensions
    )

    def finish(error: int) -> None:
        held.cancel = None
        guest.backend.loop.remove_writer(held.host.fileno())
        ring = held.ring
        assert ring is not None
        if not error:
            try:
                moving.move(held)
            except OSError as failure:
                error = failure.errno or errno.EIO
        if error:
            held.phase, held.ring = Phase.FRESH, None
            if call.answered:
                held.error = error
                ring.fail(error)
            ring.release()
        else:
            guest.counters.connections += 1
            if call.answered:
                ring.connected()
        done(error)
        if not call.answered:
            answer(guest, call, held, error)

    loop = guest.backend.loop

    def give_up(timer: TimerHandle, error: int) -> None:
        timer.cancel()
        finish(error)

    def again() -> None:
        error = start(held.host)
        if error == errno.EAGAIN:
            # A unix socket whose listener's queue is full says so instead of waiting.
            timer = loop.call_later(RETRY, again)
            held.cancel = lambda error: give_up(timer, error)
        elif error == errno.EINPROGRESS:
            held.cancel = finish
            loop.add_writer(held.host.fileno(), lambda: finish(outcome(held.host)))
        else:
            finish(error)  # natively, too, a non-blocking connect may end at once

    held.phase = Phase.CONNECTING
    again()
    if asynchronous and not call.answered and held.phase == Phase.CONNECTING:
        call.answer(to_wire(errno.EINPROGRESS))


def outcome(sock: socket.socket) -> int:
    """The errno of a connection attempt that has ended."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def answer(guest: Guest, call: Call, held: Held, error: int) -> None:
    """Answer a CONNECT; with names, the socket's own address comes along."""
    response = call.response(to_wire(error))
    if not error and Extension.NAMES in guest.extensions:
        response = response.with_address(own_name(held))
    call.send(response)


def own_name(held: Held) -> bytes:
    """The socket's own address as a struct sockaddr; none for unix sockets, which have no name here."""
    if held.family == socket.AF_UNIX:
        return b""
    return name_of(held.host.getsockname())


def name_of(address: tuple[str, int]) -> bytes:
    """A struct sockaddr from Python's tuple."""
    return Endpoint.from_python(address).sockaddr()


def peer_name(held: Held) -> bytes:
    """The peer's address as a struct sockaddr. Raises OSError(ENOTCONN)."""
    if held.family == socket.AF_UNIX:
        return b""
    return name_of(held.host.getpeername())
