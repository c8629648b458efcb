"""RELEASE, CLOSE and SHUTDOWN: nothing that the guest sent is lost, nothing of its memory is kept."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from xensock.pvcalls.serving import listening, moving
from xensock.pvcalls.serving.held import Phase
from xensock.pvcalls.serving.limits import bad_id, refuse
from xensock.wire.requests import CloseFlag, How

if TYPE_CHECKING:
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held
    from xensock.wire.requests import Close, Release, Shutdown


def release(guest: Guest, call: Call, request: Release) -> None:
    """Close; answered when the guest's pages are unmapped. `reuse` is a hint that nobody needs."""
    held = guest.sockets.get(request.id)
    if held is None:
        raise bad_id()
    drop(guest, held)
    call.answer()


def close(guest: Guest, call: Call, request: Close) -> None:
    """As RELEASE, or with a reset."""
    held = guest.sockets.get(request.id)
    if held is None:
        raise bad_id()
    drop(guest, held, reset=bool(request.flags & CloseFlag.RESET))
    call.answer()


def drop(guest: Guest, held: Held, *, reset: bool = False) -> None:
    """Close a socket whatever it is doing. Calls parked at it are answered first: EBADF."""
    reset = reset or held.linger == 0
    if held.phase == Phase.LISTENING:
        listening.unpark(held, errno.EBADF)
    if held.cancel is not None:
        held.cancel(errno.EBADF)
    if reset:
        moving.reset_on_close(held)
    moving.let_go(held, reset=reset)
    moving.forget(guest, held)


def shutdown(guest: Guest, call: Call, request: Shutdown) -> None:
    """End one direction or both, after what is in `out` now."""
    held = guest.held(request.id)
    if request.how not in set(How):
        raise refuse(errno.EINVAL)
    if held.phase != Phase.CONNECTED:
        raise refuse(errno.ENOTCONN)
    if held.shared is not None:
        held.shared.shutdown(held.side, request.how)
    elif held.token:
        try:
            moving.shutdown(held, request.how)
        except ProcessLookupError:
            raise refuse(errno.ENOTCONN) from None
    call.answer()
