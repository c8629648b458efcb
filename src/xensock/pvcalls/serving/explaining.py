"""EXPLAIN: what the policy said about a socket, for a frontend that keeps records of its own."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from xensock.pvcalls.serving.limits import refuse
from xensock.transport.base import GrantError
from xensock.wire.errors import to_wire
from xensock.wire.explanations import Explanation

if TYPE_CHECKING:
    from xensock.calls.call import Decision
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.wire.requests import Explain


def explain(guest: Guest, call: Call, request: Explain) -> None:
    """Write the last decision about a socket into a page of the guest. Raises OSError: ENODATA without one."""
    held = guest.held(request.id)
    if held.decided is None:
        raise refuse(errno.ENODATA)
    raw = explanation(*held.decided).encode()
    try:
        with guest.transport.map((request.ref,)) as page:
            page[: len(raw)] = raw
    except GrantError as error:
        raise refuse(error.errno) from error
    call.send(call.response().with_length(len(raw)))


def explanation(decision: Decision, own: bool = False) -> Explanation:
    """A decision as the wire has it."""
    error = to_wire(decision.error) if decision.error else 0
    return Explanation(
        decision.allowed, own, error, decision.rule, decision.hint, decision.name or ""
    )
