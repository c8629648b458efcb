"""CONNECT: decided, the ring mapped, then connected without anybody waiting for it."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.call import Decision, Protocol, Verb
from xensock.policy.networks import ended
from xensock.pvcalls.serving import (
    asking,
    attempt,
    consulting,
    datagrams,
    joining,
    redirecting,
    strictly,
    unix,
)  # fmt: skip
from xensock.pvcalls.serving.addresses import OWN, endpoint
from xensock.pvcalls.serving.held import Phase
from xensock.pvcalls.serving.limits import refuse

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from xensock.calls.address import Endpoint
    from xensock.calls.record import Outcome
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held
    from xensock.wire.requests import Connect


# What connect(2) says of a connection that it has begun before.
BEGUN = {errno.EISCONN: 0, errno.EALREADY: errno.EINPROGRESS}


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
    word = _asked(guest, end, decision, own)
    if word is not None:
        Later(guest, call, held, end).begin(request, word)
        return
    plan = _plan(guest, call, held, end, decision, own)
    if isinstance(plan, Decision):
        attempt.dissolve(held)  # another backend may have begun it, under other rules
        guest.record(call, Verb.CONNECT, str(end), plan, plan.error)
        call.fail(plan.error)
        return
    attempt.begin(guest, call, held, request, plan.way, plan.done)
    held.decided = plan.said()


def _asked(guest: Guest, end: Endpoint, decision: Decision, own: bool) -> Future[Decision] | None:
    """Whose word is awaited beside the rules."""
    if own or decision is asking.SERVED:
        return None
    return consulting.ask(guest, Verb.CONNECT, decision, Protocol.TCP, end.unmapped())


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a CONNECT that is allowed: the way, who records its end, and what EXPLAIN says of it."""

    way: attempt.Way
    done: Callable[[int], None]
    said: Callable[[], tuple[Decision, bool]]


def _plan(
    guest: Guest, call: Call, held: Held, end: Endpoint, decision: Decision, own: bool
) -> Plan | Decision:
    """How to go on with a decision; a refusal is its own plan."""
    held.decided = decision, own
    if not decision.allowed:
        return decision
    terms = strictly.terms(guest, end.unmapped(), decision) if not own else None
    if isinstance(terms, Decision):
        return terms
    far = None
    if not own and (decision.redirect is not None or decision.via):
        by = redirecting.carriers(guest.backend.elsewhere, decision)
        to = end if decision.redirect is None else decision.redirect
        far = redirecting.Far(held, end, to, terms, by)

    last = 0

    def said() -> tuple[Decision, bool]:
        return ended(decision if far is None else far.said(decision), last), own

    def done(error: int) -> None:
        nonlocal last
        last = error
        if far is not None:
            far.close()
        outcome: Outcome | None = "guest" if own else None
        held.decided = said()
        guest.record(
            call, Verb.CONNECT, str(end), held.decided[0], error, outcome=outcome, begun=held
        )

    begin = Begin(held, end, call.again)
    if decision is asking.SERVED:
        attempt.dissolve(held)
        way = asking.way(held, end)
    elif far is not None:
        attempt.dissolve(held)
        way = far.way
    elif terms is not None:
        way = attempt.Way(begin, lambda held: strictly.move(held, terms))
    else:
        way = joining.way(held, end) or attempt.Way(begin)
    return Plan(way, done, said)


class Later:
    """A CONNECT that is decided once somebody's word beside the rules is there.

    Who asked for an asynchronous one is told that it is under way if that takes long, and of a refusal by SO_ERROR.
    """

    def __init__(self, guest: Guest, call: Call, held: Held, end: Endpoint) -> None:
        self._guest, self._call, self._held, self._end = guest, call, held, end
        self._known = False
        self._over = False
        self._sooner: Callable[[], None] = lambda: None
        self._done: Callable[[int], None] | None = None
        self._way = attempt.Way(
            lambda sock: errno.EAGAIN,
            waits=True,
            wake=self._wake,
            undecided=lambda: not self._known,
        )

    def begin(self, request: Connect, word: Future[Decision]) -> None:
        """Map the ring and wait. Raises OSError."""
        attempt.begin(self._guest, self._call, self._held, request, self._way, self._ended)
        consulting.then(self._guest, word, self._told)

    def _wake(self, sooner: Callable[[], None]) -> None:
        self._sooner = sooner

    def _ended(self, error: int) -> None:
        self._over = True
        if self._done is not None:
            self._done(error)

    def _told(self, decision: Decision | None) -> None:
        if self._over or self._guest.gone:
            return
        own = False
        try:
            if decision is None:  # another policy is in force
                decision, own = decide(self._guest, self._end)
                word = _asked(self._guest, self._end, decision, own)
                if word is not None:
                    consulting.then(self._guest, word, self._told)
                    return
            plan = _plan(self._guest, self._call, self._held, self._end, decision, own)
        except OSError as error:
            plan = Decision(False, "fault", error.errno or errno.EIO)
        except Exception:
            self._guest.log.exception("internal error, a call of %s was refused", self._guest.name)
            plan = Decision(False, "fault", errno.EPERM)
        self._known = True
        if isinstance(plan, Decision):
            refusal = plan
            self._way.start = lambda sock: refusal.error
            self._done = lambda error: self._guest.record(
                self._call, Verb.CONNECT, str(self._end), refusal, error
            )
        else:
            self._way.become(plan.way)
            self._done = plan.done
        self._sooner()


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


class Begin:
    """Connects a non-blocking socket, and is asked again later: 0, EINPROGRESS, or the errno of connect(2).

    `begun`: another backend may have begun just this. The kernel does not say where a connection leads that exists, so
    one that was begun by nobody known is dissolved.
    """

    def __init__(self, held: Held, end: Endpoint, begun: bool) -> None:
        self._held, self._address, self._begun = held, end.sockaddr(), begun

    def __call__(self, sock: socket.socket) -> int:
        error = _core.connect_start(sock.fileno(), self._address, 0)
        if error in BEGUN and not self._begun:
            attempt.dissolve(self._held)
            error = _core.connect_start(sock.fileno(), self._address, 0)
        self._begun = True
        return BEGUN.get(error, error)
