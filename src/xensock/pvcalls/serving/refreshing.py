"""Another policy is in force: connections of a guest that it forbids end, if it says so."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock.calls.call import Verb
from xensock.pvcalls.serving import moving
from xensock.pvcalls.serving.addresses import own_end, peer_end
from xensock.pvcalls.serving.held import Phase
from xensock.wire.requests import How

if TYPE_CHECKING:
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held


def refresh(guest: Guest) -> int:
    """End what the guest's policy forbids, both directions in order; how many connections that were."""
    if not guest.point.policy.close_on_reload:
        return 0
    return sum(_judge(guest, held) for held in list(guest.sockets.values()))


def _judge(guest: Guest, held: Held) -> bool:
    if held.kind != socket.SOCK_STREAM or held.phase != Phase.CONNECTED:
        return False
    try:
        peer, own = peer_end(held), own_end(held)
    except OSError:
        return False
    if peer is None or own is None:
        return False
    if held.decided is None:  # it was accepted
        decision = guest.point.accept(peer.unmapped(), own.port)
    elif held.decided[1]:
        return False  # the guest meets itself
    else:
        decision = guest.point.still(peer.unmapped(), guest.transport.pid)
    if decision.allowed or not decision.close_on_reload:
        return False
    if held.shared is not None:
        held.shared.shutdown(held.side, How.RDWR)
    elif held.token:
        with suppress(ProcessLookupError):
            moving.shutdown(held, How.RDWR)
    guest.record_refused(Verb.CLOSE, str(peer), decision)
    return True
