"""The backend: serves the PV Calls of its guests on this host's network.

Theory of operation: one asyncio loop carries out commands (pvcalls.serving), the mover's threads move
bytes. Each guest has its session, its policy point and its own limits; what they share is
here: the mover, the ports that are taken, the policy.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import time
from typing import TYPE_CHECKING, Protocol

from xensock import _core
from xensock.calls.record import closed
from xensock.policy.point import Current, Point
from xensock.pvcalls.keeping import Journal
from xensock.pvcalls.serving.guest import Counters, Guest
from xensock.pvcalls.serving.limits import Limits
from xensock.pvcalls.serving.moving import Lingering
from xensock.pvcalls.serving.ports import Ports
from xensock.pvcalls.serving.session import Session, program_of
from xensock.wire.extensions import ALL, Extension
from xensock.wire.indexes import MAX_ORDER
from xensock.wire.store import Offer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xensock.calls.address import IPAddress
    from xensock.calls.call import Decision
    from xensock.calls.record import Record
    from xensock.policy.gate import Gate
    from xensock.policy.point import ResolvePolicy
    from xensock.policy.policy import Policy
    from xensock.pvcalls import keeping
    from xensock.pvcalls.serving.held import Held
    from xensock.pvcalls.serving.redirecting import Elsewhere
    from xensock.pvcalls.serving.sharing import Shared
    from xensock.pvcalls.serving.strictly import Strictness
    from xensock.transport.base import BackSession

LAST_ENDS = 1.0  # seconds at a stop for connections to end, so that their ends are recorded
log = logging.getLogger("xensock.backend")

# What this backend carries out.
OFFERED = ALL


class NameService(Protocol):
    """Names for one guest, decided by `policy` and recorded (backend.daemon has the one of this host)."""

    policy: ResolvePolicy

    def names_of(self, address: IPAddress) -> tuple[str, ...]:
        """The names by which the guest knows an address."""
        ...

    def lapsed(self, address: IPAddress) -> tuple[str, ...]:
        """The names by which it knew the address until their answers lapsed."""
        ...

    def keep(self, right: Callable[[str, IPAddress], bool]) -> None:
        """Forget every pair of name and address for which right() is False."""
        ...

    async def explained(
        self, message: bytes, server: IPAddress | None, *, datagram: bool
    ) -> tuple[bytes, Decision] | None:
        """The answer to a DNS message that was sent to `server`, by `datagram` or without a limit to its length, and
        what was decided; None when it deserves none."""
        ...


class Backend:
    """Serves sessions until `stop`. Everything here belongs to the loop's thread.

    record         takes a record of each call that was decided; None: nobody keeps any
    gate           what refuses every call for the moment, if anything does (Point)
    name_service   makes the name service of a guest of that name
    strict         carries what rules verify or limit; None: that is refused
    elsewhere      the networks to which rules send calls; None: there are none
    """

    def __init__(
        self,
        policy: Policy | Current,
        name_service: Callable[[str], NameService],
        record: Callable[[Record], None] | None = None,
        *,
        limits: Limits | None = None,
        extensions: frozenset[Extension] = OFFERED,
        threads: int = 1,
        gate: Gate | None = None,
        strict: Strictness | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self.current = policy if isinstance(policy, Current) else Current(policy)
        self.record = record
        self.limits = limits or Limits()
        self.loop = asyncio.get_running_loop()
        self.mover = _core.mover_open(threads)
        self.strict = strict
        self.elsewhere = elsewhere
        self.ports = Ports()
        self.sessions: dict[int, Session] = {}
        self.tokens: dict[int, list[tuple[Counters, int]]] = {}
        self.shared: set[Shared] = set()
        self.journal: Journal | None = None  # what a successor needs, if there can be one
        self.keep_names: Callable[[Guest, int], None] = lambda guest, fd: None
        self.rests: dict[int, tuple[int, int, int, int, int, bool]] = {}  # by token: what it says
        self.lingering = Lingering(self.limits.lingering)
        self.past = Counters()
        self.numbers = itertools.count(1)  # of connections, in records
        self._begun: dict[int, list[tuple[Record, int]]] = {}  # by token: whose ends are recorded
        self._gate = gate
        self._name_service = name_service
        large = Extension.LARGE_RINGS in extensions
        self.offer = Offer(
            min(self.limits.order, MAX_ORDER),
            max_ring_page_order=self.limits.ring_order,
            max_large_page_order=self.limits.large_order if large else 0,
            extensions=extensions,
        )
        self._empty = asyncio.Event()
        self._empty.set()
        self.loop.add_reader(_core.mover_fd(self.mover), self._moved)

    def serve(self, transport: BackSession) -> Session:
        """Serve a frontend from its first message to its last."""
        session = self.admit(transport)
        if len(self.sessions) > self.limits.guests:
            session.expel(f"{self.limits.guests} guests are connected, which is the limit")
        else:
            session.start()
        return session

    def admit(self, transport: BackSession) -> Session:
        """A session that is to be started, or to go on."""
        session = Session(self, transport)
        self.sessions[session.number] = session
        self._empty.clear()
        return session

    def make_guest(self, session: Session, extensions: frozenset[Extension]) -> Guest:
        """A guest with its own policy point."""
        names = self._name_service(session.name)
        point = names.policy = Point(
            session.name,
            self.current,
            names.names_of,
            self.record,
            labels=session.transport.labels,
            lapsed=names.lapsed,
            keep=names.keep,
            gate=self._gate,
        )
        program = program_of(session.transport.pid)
        guest = Guest(self, session.transport, point, names, extensions, program)
        guest.number = session.number
        return guest

    def began(self, held: Held, record: Record) -> None:
        """The connection of a socket began, by the call of that record: its end will be recorded."""
        if held.shared is not None:
            held.shared.begun[held.side] = record
        elif held.token:
            self._begun.setdefault(held.token, []).append((record, held.side))

    def ended(self, record: Record, sent: int, received: int, error: int) -> None:
        """Record the end of a connection."""
        if self.record is not None:
            self.record(closed(record, time.time(), sent, received, error))

    def retire(self, guest: Guest) -> None:
        """Remember what a guest that is gone did; what its connections still deliver counts too."""
        self.past.add(guest.counters)
        for token, ends in self.tokens.items():
            if any(counters is guest.counters for counters, _ in ends):
                past = [(self.past if c is guest.counters else c, side) for c, side in ends]
                self.tokens[token] = past
        for shared in self.shared:
            shared.retire(guest, self.past)

    def forget(self, session: Session) -> None:
        """A session is over."""
        self.sessions.pop(session.number, None)
        if not self.sessions:
            self._empty.set()

    async def stop(self, reason: str, *, patience: float = 2.0, linger: float = 10.0) -> None:
        """End every session in order, then let connections deliver what their guests sent.

        patience   seconds for frontends to answer before they are disconnected
        linger     seconds for bytes on their way
        """
        for session in list(self.sessions.values()):
            session.stop(reason)
        try:
            async with asyncio.timeout(patience):
                await self._empty.wait()
        except TimeoutError:
            for session in list(self.sessions.values()):
                session.expel(reason)
        self.loop.remove_reader(_core.mover_fd(self.mover))
        deadline = self.loop.time() + min(linger, LAST_ENDS)
        self._moved()
        while self._begun and self.loop.time() < deadline:
            await asyncio.sleep(0.002)
            self._moved()
        for token, begun in self._begun.items():
            moved = _core.mover_bytes(self.mover, token) or (0, 0)
            for record, side in begun:
                self.ended(record, moved[side], moved[1 - side], errno.ECONNRESET)
        await asyncio.to_thread(_core.mover_close, self.mover, int(linger * 1000))

    def counters(self, guest: Guest | None = None) -> Counters:
        """What a guest did, connections that live included; without one, all guests there were."""
        total = Counters()
        wanted = [guest] if guest else [s.guest for s in self.sessions.values() if s.guest]
        for each in wanted:
            total.add(each.counters)
        ours = {id(each.counters) for each in wanted}
        for shared in self.shared:
            shared.add_to(total, ours if guest else ours | {id(self.past)})
        for token, ends in self.tokens.items():
            for counters, side in ends:
                if guest is None or id(counters) in ours:
                    moved = _core.mover_bytes(self.mover, token)
                    if moved is not None:
                        total.sent += moved[side]
                        total.received += moved[1 - side]
        if guest is None:
            total.add(self.past)
        return total

    def _moved(self) -> None:
        """Connections ended, or a guest broke the rules of a data ring."""
        for token, a, b, error, _ in _core.mover_ended(self.mover):
            for record, side in self._begun.pop(token, ()):
                self.ended(record, (a, b)[side], (b, a)[side], error)
            self.lingering.ended(token)
            self._rested(token)
            for counters, side in self.tokens.pop(token, ()):
                counters.sent += (a, b)[side]
                counters.received += (b, a)[side]
        for token, kind, _, side in _core.mover_notices(self.mover):
            if kind == "error":
                self._breach(token, side)

    def _rested(self, token: int) -> None:
        rest = self.rests.pop(token, None)
        if rest is not None and self.journal is not None:
            self.journal.note("rested", token)
            os.close(rest[2])

    def keep(self) -> Journal:
        """Keep a journal from now on: before anybody is served."""
        self.journal = Journal(self._snapshot, self.loop.call_soon)
        return self.journal

    def _snapshot(self) -> Iterator[keeping.Record]:
        for token, rest in self.rests.items():
            yield "rest", token, *rest
        for session in self.sessions.values():
            yield from session.snapshot()

    def _breach(self, token: int, side: int) -> None:
        for session in list(self.sessions.values()):
            guest = session.guest
            if guest is not None and guest.has_token(token, side):
                session.expel("it broke the rules of a data ring")
