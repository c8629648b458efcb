"""A connection attempt: the ring mapped first, then connected without anybody waiting for it."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from xensock import _core
from xensock.pvcalls.serving import moving
from xensock.pvcalls.serving.addresses import own_name
from xensock.pvcalls.serving.held import Held, Phase
from xensock.pvcalls.serving.rings import map_ring
from xensock.wire.errors import to_wire
from xensock.wire.extensions import Extension
from xensock.wire.requests import ConnectFlag

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Callable

    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.wire.requests import Connect

# Seconds between attempts at a listener whose queue is full, where it does not say when it has room.
RETRY, RETRY_MOST = 0.01, 1.0
UNDECIDED = 0.1  # the delay between two attempts from which on the guest does not wait for a decision any more
NOBODY = bytes(16)  # AF_UNSPEC
# What start() says where the answer to an asynchronous CONNECT is EINPROGRESS.
_TCP = (0, errno.EINPROGRESS, errno.EAGAIN)
UNDER_WAY: dict[int, tuple[int, ...]] = {
    socket.AF_INET: _TCP,
    socket.AF_INET6: _TCP,
    socket.AF_UNIX: (errno.EAGAIN,),
}


@dataclass(slots=True)
class Way:
    """How a connection is made.

    start   begins, and is asked again later: 0, EINPROGRESS, or the errno of connect(2); with
            `waits`, EAGAIN means that the listener's queue is full
    prepare what comes before the guest is told
    wake    with `waits`, takes what to call when it is worth while to ask again, each time anew
    undecided   whether it may still be refused; the guest is not told that it is under way then, unless that takes long
    move    has the bytes of a connection that was made moved; raises OSError
    """

    start: Callable[[socket.socket], int]
    move: Callable[[Held], None] = moving.move
    waits: bool = False
    prepare: Callable[[Held], None] | None = None
    wake: Callable[[Callable[[], None]], None] | None = None
    undecided: Callable[[], bool] = lambda: False

    def become(self, other: Way) -> None:
        """Go that way from now on."""
        for each in fields(Way):
            setattr(self, each.name, getattr(other, each.name))


def begin(
    guest: Guest,
    call: Call,
    held: Held,
    request: Connect,
    way: Way,
    done: Callable[[int], None],
) -> None:
    """Map the ring and connect; `done` is told the errno of the attempt once it ended. Raises OSError
    for a ring that cannot be mapped."""
    held.ring = map_ring(guest, request.ref, request.port)
    held.request = call.slot if call.answered else b""
    asynchronous = bool(request.flags & ConnectFlag.ASYNC) and (
        Extension.ASYNC_CONNECT in guest.extensions
    )

    def finish(error: int) -> None:
        held.cancel = None
        guest.backend.loop.remove_writer(held.host.fileno())
        ring = held.ring
        assert ring is not None
        if not error:
            held.made = call.slot
            if way.prepare is not None:
                way.prepare(held)
            if call.answered:
                # First: an end that the mover tells at once must not look like an attempt that failed.
                ring.connected()
            try:
                way.move(held)
            except OSError as failure:
                error = failure.errno or errno.EIO
        if error:
            dissolve(held)
            held.phase, held.ring = Phase.FRESH, None
            if call.answered:
                held.error = error
                ring.fail(error)
            held.start = None
            guest.keep(held)
            ring.release()
        else:
            guest.counters.connections += 1
        done(error)
        if not call.answered:
            answer(guest, call, held, error)
        elif not error:
            held.request = b""  # it is recorded
            guest.keep(held)

    loop = guest.backend.loop

    def give_up(timer: TimerHandle, error: int) -> None:
        timer.cancel()
        finish(error)

    def sooner(timer: TimerHandle) -> None:
        timer.cancel()
        again()

    def ended() -> bool:
        # A second connect(2) tells the outcome, and unlike SO_ERROR leaves a socket that can try anew.
        error = way.start(held.host)
        if error in (errno.EINPROGRESS, errno.EALREADY):
            return False
        finish(0 if error == errno.EISCONN else error)
        return True

    def again(delay: float = RETRY) -> None:
        error = way.start(held.host)
        early = delay < UNDECIDED and way.undecided()
        if asynchronous and not call.answered and not early and error in UNDER_WAY[held.family]:
            # As natively, where a non-blocking connect of TCP never says at once how it went.
            held.request = call.slot
            guest.keep(held)
            call.answer(to_wire(errno.EINPROGRESS))
        if error == errno.EAGAIN and way.waits:
            timer = loop.call_later(delay, again, min(2 * delay, RETRY_MOST))
            held.cancel = lambda error: give_up(timer, error)
            if way.wake is not None:
                way.wake(lambda: sooner(timer))
        elif error != errno.EINPROGRESS:
            finish(error)
        elif not ended():  # within the host it has ended by now
            held.cancel = finish
            loop.add_writer(held.host.fileno(), ended)

    held.phase = Phase.CONNECTING
    again()


def dissolve(held: Held) -> None:
    """Have the host's socket neither connected nor connecting (connect(2), AF_UNSPEC): what goes on in the kernel would
    be the outcome of the next attempt otherwise."""
    if held.sock is not None and held.family in (socket.AF_INET, socket.AF_INET6):
        _core.connect_start(held.sock.fileno(), NOBODY, 0)


def answer(guest: Guest, call: Call, held: Held, error: int) -> None:
    """Answer a CONNECT; with names, the socket's own address comes along."""
    response = call.response(to_wire(error))
    if not error and Extension.NAMES in guest.extensions:
        response = response.with_address(own_name(held))
    call.send(response)
