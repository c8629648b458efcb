"""Sockets that another backend had until it was killed: taken up by what its journal and the kernel say of them."""

from __future__ import annotations

import errno
import mmap
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.pvcalls.serving import (
    attempt,
    connecting,
    counting,
    datagrams,
    listening,
    moving,
    repeating,
    resolving,
    rings,
)
from xensock.pvcalls.serving.call import Call
from xensock.pvcalls.serving.held import Held, Phase
from xensock.pvcalls.serving.rings import map_ring
from xensock.transport.base import PAGE, GrantError
from xensock.wire import indexes
from xensock.wire.commands import BadRequest, decode_request
from xensock.wire.extensions import Extension
from xensock.wire.requests import Connect

if TYPE_CHECKING:
    from xensock.pvcalls.backend import Backend
    from xensock.pvcalls.keeping import KeptRest
    from xensock.pvcalls.serving.guest import Guest
    from xensock.wire.requests import Request
    from xensock.wire.responses import Response


def restore(guest: Guest, id: int, kept: dict[str, Any], sock: socket.socket | None) -> None:
    """Make a socket of a guest anew, without anything that others could see. Raises OSError and more; what the guest
    has of it by then is the caller's to drop."""
    held = Held(
        guest,
        id,
        kept["family"],
        kept["kind"],
        kept["protocol"],
        sock,
        Phase[kept["phase"]],
        linger=kept["linger"],
        backlog=kept["backlog"],
        error=kept["error"],
        hops=kept["hops"],
        start=kept["start"],
        stop=kept["stop"],
        request=kept["request"],
        made=kept["made"],
        client=kept["client"],
    )
    guest.add(held)
    if kept["ring"] is not None:
        held.ring = map_ring(guest, *kept["ring"])
    if held.is_bound and held.phase != Phase.CONNECTED:
        guest.backend.ports.note(held)
    if held.phase == Phase.LISTENING:
        held.arrived = lambda: listening.pump(held)
        guest.backend.ports.listens(held, Endpoint.from_python(held.host.getsockname()))
    elif held.phase == Phase.CONNECTED and not kept["accepted"]:
        with suppress(OSError):
            peer = Endpoint.from_python(held.host.getpeername())
            held.decided = connecting.decide(guest, peer)
    elif held.phase == Phase.DATAGRAMS and held.ring is not None:
        _attach(guest, held, kept["peer"])


def lose(guest: Guest, ring: tuple[int, int] | None, sock: socket.socket | None) -> None:
    """A socket cannot be made anew: whoever is at its ends is told. Takes it. Raises OSError, GrantError."""
    if sock is not None:
        with sock:
            if sock.type == socket.SOCK_STREAM and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, moving.RESET)
    if ring is not None and not guest.gone:
        rings.tell(guest, *ring, errno.ECONNRESET)


def _attach(guest: Guest, held: Held, peer: bytes | None) -> None:
    if held.sock is None:
        resolving.attached(guest, held)
        return
    held.datagrams = datagrams.Datagrams(guest, held)
    if peer is not None:
        held.datagrams.connect(Endpoint.from_sockaddr(peer), judged=False)


def run_on(guest: Guest, held: Held) -> None:
    """Go on with a socket."""
    if held.phase == Phase.CONNECTED:
        _move_on(guest, held)
        _record(guest, held)
    elif held.phase == Phase.CONNECTING:
        _connect_on(guest, held)
    elif held.phase == Phase.DATAGRAMS and held.ring is not None:
        held.ring.event.notify()


def _move_on(guest: Guest, held: Held) -> None:
    ring = held.ring
    if ring is None:
        return
    if Extension.ASYNC_CONNECT in guest.extensions:
        ring.connected()
    start = None
    with suppress(OSError):
        if held.start is not None and held.sock is not None:
            shown = int.from_bytes(ring.indexes[indexes.IN_PROD : indexes.IN_PROD + 4], "little")
            start = counting.resumed(held.sock, held.start, shown, held.stop, ring.told())
        if start is not None:
            going_on = (start.rx, start.tx, start.shut, held.stop, start.error)
            token = moving.join(held, os.dup(held.host.fileno()), going_on)
            moving.carried(held, token, 0)
            ring.event.notify()
            return
    # What it had moved, and what it had in its own memory, nobody knows.
    if held.sock is not None:
        moving.reset_on_close(held)
    ring.fail(errno.ECONNRESET)


def _record(guest: Guest, held: Held) -> None:
    """A CONNECT that was answered while it was under way, and had come to its end, is perhaps not recorded."""
    if not held.request:
        return
    with suppress(BadRequest):
        call, request = _under_way(guest, held)
        if isinstance(request, Connect):
            repeating.record_connect(guest, call, held, request)
    held.request = b""
    guest.keep(held)


class _Answered(Call):
    """A CONNECT that was answered: under way. How it ends the ring tells."""

    failed = 0

    def send(self, response: Response) -> None:
        self.failed = response.ret


def _under_way(guest: Guest, held: Held) -> tuple[_Answered, Request]:
    """The request that a socket was noted with. Raises BadRequest."""
    slot = held.request
    req_id, request = decode_request(slot, guest.extensions)
    cmd = int.from_bytes(slot[4:8], "little")
    return _Answered(guest, req_id, cmd, held.id, answered=True, slot=slot, again=True), request


def _connect_on(guest: Guest, held: Held) -> None:
    held.phase = Phase.FRESH
    if not held.request:
        return
    try:
        call, request = _under_way(guest, held)
    except BadRequest:
        attempt.dissolve(held)
        return
    guest.handle(call, request)
    if not call.failed or not isinstance(request, Connect):
        return
    held.error = -call.failed if call.failed > -4096 else errno.ECONNABORTED
    with suppress(OSError, GrantError):
        rings.tell(guest, request.ref, request.port, held.error)


def deliver(backend: Backend, sock: socket.socket, rest: KeptRest, memory: int) -> None:
    """Go on to deliver what a guest had sent before it released a connection. Takes both descriptors. Raises
    OSError."""
    whole = os.pread(memory, rest.length, 0)
    os.close(memory)
    with sock:
        now = counting.counts(sock)
        sent = now.taken - rest.begin - (now.state in counting.SENT_END)
        left = whole[max(sent, 0) :]
        if rest.reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, moving.RESET)
        elif not left:
            with suppress(OSError):  # it was done, or the connection has ended
                sock.shutdown(socket.SHUT_WR)
        if not left and not rest.reset:  # a reset waits for what is on its way (ringflow.c)
            return
        start = counting.counts(sock).taken, 0, 0, 0
        token = _moved_by_ring(backend, os.dup(sock.fileno()), left)
        found = _core.mover_release(backend.mover, token, rest.reset, 0, True)
        if found is not None:
            moving.note_rest(backend, token, sock, found, rest.reset, start)


def _moved_by_ring(backend: Backend, fd: int, left: bytes) -> int:
    """Have the mover take bytes out of a ring of our own."""
    half = max(PAGE, 1 << max(len(left) - 1, 0).bit_length())
    page, data = mmap.mmap(-1, PAGE), mmap.mmap(-1, 2 * half)
    _core.DataRing(page, data, "front", True, True).close()
    data[half : half + len(left)] = left
    at = indexes.OUT_PROD
    page[at : at + 4] = len(left).to_bytes(4, "little")
    events = [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2)]
    try:
        return _core.mover_add_ring(
            backend.mover, fd, page, data, "back", events[0], events[1], True, True
        )
    finally:
        for each in events:
            os.close(each)
