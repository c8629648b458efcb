"""One guest of a backend: its sockets, and its commands one after the other.

Theory of operation: the event loop's one thread takes requests out of the command ring, a few a
turn, and hands each to its handler, which answers now or keeps the `Call` and answers later; no
handler waits. Bytes are moved by the mover's threads.

Rules
- A request was copied out of the guest's memory and decoded once; handlers see the copy.
- A handler that raises OSError answers with that errno; one that fails otherwise is a fault of
  ours: it is logged, and the guest refused (EPERM).
"""

from __future__ import annotations

import errno
import logging
import socket
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xensock.calls.call import Verb
from xensock.pvcalls.serving import (
    closing,
    connecting,
    datagrams,
    explaining,
    listening,
    names_options,
    opening,
    refreshing,
    repeating,
    resuming,
)
from xensock.pvcalls.serving.call import Call, UnsupportedError
from xensock.pvcalls.serving.held import Held, Phase
from xensock.pvcalls.serving.limits import bad_id, refuse
from xensock.wire import requests
from xensock.wire.commands import BadRequest, decode_request

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from xensock.calls.call import Decision
    from xensock.calls.record import Outcome
    from xensock.policy.point import Point
    from xensock.pvcalls.backend import Backend, NameService
    from xensock.pvcalls.keeping import Journal, Record
    from xensock.transport.base import BackSession
    from xensock.wire.extensions import Extension
    from xensock.wire.responses import Response

    Handler = Callable[["Guest", Call, requests.Request], None]

HANDLERS: dict[type, Callable[..., None]] = {
    requests.Socket: opening.socket_,
    requests.Connect: connecting.connect,
    requests.Release: closing.release,
    requests.Bind: listening.bind,
    requests.Listen: listening.listen,
    requests.Accept: listening.accept,
    requests.Poll: listening.poll,
    requests.Shutdown: closing.shutdown,
    requests.GetName: names_options.get_name,
    requests.SetOption: names_options.set_option,
    requests.GetOption: names_options.get_option,
    requests.Close: closing.close,
    requests.Attach: datagrams.attach,
    requests.Explain: explaining.explain,
}


@dataclass(slots=True)
class Counters:
    """What a guest did since it connected. Bytes as the guest sees them: `sent` left it."""

    commands: int = 0
    connections: int = 0
    accepted: int = 0
    refused: int = 0
    questions_refused: int = 0
    sent: int = 0
    received: int = 0

    def add(self, other: Counters) -> None:
        """Count what the other counted too."""
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Guest:
    """The sockets of one connected frontend.

    respond   takes a response for the command ring
    breach    disconnects the guest, which broke a rule
    program   of the process that is the frontend, for records
    """

    def __init__(
        self,
        backend: Backend,
        transport: BackSession,
        point: Point,
        names: NameService,
        extensions: frozenset[Extension],
        program: str,
    ) -> None:
        self.backend = backend
        self.transport = transport
        self.point = point
        self.names = names
        self.extensions = extensions
        self.program = program
        self.log = logging.getLogger("xensock.backend")
        self.sockets: dict[int, Held] = {}
        self.pages = 0
        self.counters = Counters()
        self.respond: Callable[[bytes, int], None] = lambda slot, sequence: None
        self.journal: Journal | None = None
        self.number = 0
        self.names_fd = -1  # where what it learned is kept
        self.leave_names: Callable[[], None] = lambda: None
        self.gone = False
        self.breach: Callable[[str], None] = lambda reason: None
        self.tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """What the guest calls itself."""
        return self.point.guest

    # --- commands

    def serve(self, slot: bytes, sequence: int = 0, again: bool = False) -> None:
        """Carry out one request. `again`: another backend has perhaps done so, but not answered."""
        self.counters.commands += 1
        try:
            req_id, request = decode_request(slot, self.extensions)
        except BadRequest as bad:
            Call(self, bad.req_id, bad.cmd, bad.id, sequence=sequence).answer(bad.ret)
            return
        cmd = int.from_bytes(slot[4:8], "little")
        call = Call(self, req_id, cmd, request.id, sequence=sequence, slot=slot, again=again)
        self.handle(call, request)

    def handle(self, call: Call, request: requests.Request) -> None:
        """Carry out a request, or refuse it."""
        try:
            if not (call.again and repeating.done(self, call, request)):
                HANDLERS[type(request)](self, call, request)
        except Exception as failure:
            if call.again:
                repeating.undo(self, request)
            self._refuse(call, request, failure)

    def _refuse(self, call: Call, request: requests.Request, failure: Exception) -> None:
        if isinstance(failure, UnsupportedError):
            call.unsupported()
        elif isinstance(failure, OSError):
            call.fail(failure.errno or errno.EIO)
        else:
            # No decision means no; the fault is shown, not hidden.
            what = "internal error, %s of %s was refused"
            self.log.error(what, request, self.name, exc_info=failure)
            if not call.answered:
                call.fail(errno.EPERM)

    def send(self, response: Response, sequence: int = 0) -> None:
        """Put a response into the command ring; after the guest's end nobody reads it."""
        if not self.gone:
            self.respond(response.encode(), sequence)

    def asked(self, decision: Decision) -> None:
        """A question for a name was decided."""
        self.counters.questions_refused += not decision.allowed

    # --- sockets

    def held(self, id: int) -> Held:
        """The socket of an id. Raises OSError(EBADF)."""
        held = self.sockets.get(id)
        if held is None or held.phase == Phase.ACCEPTING:
            raise bad_id()
        return held

    def stream(self, id: int) -> Held:
        """The stream socket of an id. Raises OSError: EBADF, EOPNOTSUPP for other sockets."""
        held = self.held(id)
        if held.kind != socket.SOCK_STREAM:
            raise refuse(errno.EOPNOTSUPP)
        return held

    def add(self, held: Held) -> Held:
        """Take a new socket. Raises OSError: EEXIST for an id that is taken, ENFILE at the limit."""
        self.check_room(held.id)
        self.sockets[held.id] = held
        return held

    def check_room(self, id: int) -> None:
        """Raises OSError where `add` would."""
        if id in self.sockets:
            raise refuse(errno.EEXIST)
        if len(self.sockets) >= self.backend.limits.sockets:
            raise refuse(errno.ENFILE)

    def has_token(self, token: int, side: int) -> bool:
        """Whether that side of the mover's connection is a socket of this guest."""
        return any(h.token == token and h.side == side for h in self.sockets.values())

    # --- what a successor needs (pvcalls.keeping)

    def keep(self, held: Held) -> None:
        """Note where a socket is in its life."""
        if self.journal is not None and held.phase != Phase.ACCEPTING:
            self.journal.note("held", self.number, held.id, held.kept())

    def snapshot(self) -> Iterator[Record]:
        """What the journal says of this guest."""
        if self.names_fd >= 0:
            yield "names", self.number, self.names_fd
        for held in self.sockets.values():
            if held.phase != Phase.ACCEPTING:
                yield "held", self.number, held.id, held.kept()

    def run_on(self) -> None:
        """Go on with sockets that another backend had."""
        for held in list(self.sockets.values()):
            resuming.run_on(self, held)
        refreshing.refresh(self)  # other rules may be in force than before

    def end(self) -> None:
        """The guest is gone: everything it had goes; what it sent is still delivered."""
        self.gone = True
        for held in list(self.sockets.values()):
            closing.drop(self, held)
        for task in self.tasks:
            task.cancel()
        self.leave_names()

    # --- records

    def record(
        self,
        call: Call,
        verb: Verb,
        target: str,
        decision: Decision,
        error: int,
        *,
        outcome: Outcome | None = None,
        start: int = 0,
        begun: Held | None = None,
    ) -> None:
        """Record a call that was decided, as it ends. `begun`: the socket whose connection began, unless it failed."""
        if outcome is None:
            outcome = "allow" if decision.allowed else "deny"
        self._write(
            verb,
            target,
            decision,
            outcome,
            error,
            start or call.start,
            begun if not error else None,
        )

    def record_datagram(self, verb: Verb, target: str, decision: Decision, own: bool) -> None:
        """Record the first datagram to a destination."""
        outcome: Outcome = "deny" if not decision.allowed else "guest" if own else "allow"
        self._write(verb, target, decision, outcome, decision.error, time.monotonic_ns())

    def record_refused(self, verb: Verb, target: str, decision: Decision) -> None:
        """Record what came to the guest from outside and was refused."""
        self._write(verb, target, decision, "deny", decision.error, time.monotonic_ns())

    def _write(
        self,
        verb: Verb,
        target: str,
        decision: Decision,
        outcome: Outcome,
        error: int,
        start: int,
        begun: Held | None = None,
    ) -> None:
        if not decision.allowed:
            self.counters.refused += 1
        if not self.point.keeps(outcome):
            return
        record = self.point.write(
            verb,
            target,
            decision,
            outcome,
            "ring" if decision.allowed else "",
            error,
            pid=self.transport.pid,
            program=self.program,
            start=start,
            took=time.monotonic_ns() - start,
            user=self.transport.uid,
            connection=next(self.backend.numbers) if begun is not None else 0,
        )
        if begun is not None and record is not None:
            self.backend.began(begun, replace(record, accepted=verb == Verb.ACCEPT))
