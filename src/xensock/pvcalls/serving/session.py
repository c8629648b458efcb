"""A guest's connection to the backend: from the first node to the last page, by the state table.

The steps are `wire.states.back`'s; here is what its actions do. Whatever ends a session is logged in one
line, and everything that belonged to it goes.
"""

from __future__ import annotations

import itertools
import logging
import os
import select
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xensock import _core
from xensock.transport.base import GrantError, ProtocolError
from xensock.transport.local_back import LocalBackSession
from xensock.wire import states, store
from xensock.wire.errors import WireError
from xensock.wire.extensions import Extension
from xensock.wire.states import Action, Event, State

if TYPE_CHECKING:
    from asyncio import TimerHandle
    from collections.abc import Callable, Iterator

    from xensock.pvcalls.backend import Backend
    from xensock.pvcalls.keeping import KeptSession, Record
    from xensock.pvcalls.serving.guest import Guest
    from xensock.transport import base

TURN = 0.002  # seconds of one guest's commands before others get their turn
CATCH_UP = 16  # times that messages are read before requests are served in spite of more
_numbers = itertools.count(1)
log = logging.getLogger("xensock.backend")


class Session:
    """One frontend, from `start` until `gone` is true.

    number   names it among all sessions of this process
    guest    its sockets, once it is connected
    lost     whether it cannot go on after its backend was killed: it is to be expelled, and no successor told of it
    """

    def __init__(self, backend: Backend, transport: base.BackSession) -> None:
        self.number = next(_numbers)
        self.since = time.time()
        self.state = State.INITIALISING
        self.guest: Guest | None = None
        self.gone = self.lost = False
        self._backend = backend
        self._transport = transport
        self._ring: _core.BackRing | None = None
        self._choice: store.Choice | None = None
        self._page: memoryview | None = None
        self._event: base.Event | None = None
        self._seen: State | None = None
        self._reason = ""
        self._deadline: TimerHandle | None = None
        self._again = False
        self._taken: deque[tuple[int, bytes, bool]] = deque()
        self._sequence = 0
        self._answer = b""
        self._waiting: dict[int, bytes] = {}  # requests without a response, where a journal is kept
        self._journal = backend.journal if isinstance(transport, LocalBackSession) else None
        self._fd = transport.fileno()
        offer = backend.offer
        self._offer = replace(offer, extensions=offer.extensions - transport.lacks)
        self._actions: dict[Action, Callable[[], None]] = {
            Action.PUBLISH: self._publish,
            Action.MAP: self._map,
            Action.UNMAP: self._unmap,
            Action.EXPEL: self._expel,
            Action.FREE: self._free,
        }

    @property
    def name(self) -> str:
        """What the guest calls itself, and its number among the sessions."""
        return self._transport.guest or f"guest-{self.number}"

    @property
    def transport(self) -> base.BackSession:
        """Whose credentials say who the guest is."""
        return self._transport

    def start(self) -> None:
        """Announce what there is and wait for the frontend."""
        self._backend.loop.add_reader(self._fd, self._readable)
        if self._journal is not None:
            self._note("session", self._fd, self._transport.pid, self._transport.uid)
            self._be_told()
        if not self._transport.waits:
            self._within(self._backend.limits.handshake)
        self._step(Event.START)

    def stop(self, reason: str) -> None:
        """End it in order: the frontend closes next."""
        self._reason = self._reason or reason
        self._step(Event.STOP)

    def expel(self, reason: str) -> None:
        """End it now."""
        self._reason = self._reason or reason
        self._step(Event.FAULT)

    def _within(self, seconds: float) -> None:
        """Expel a frontend that is not where it should be by then."""
        if self._deadline is not None:
            self._deadline.cancel()
        late = f"it took longer than {seconds:g} s"
        self._deadline = self._backend.loop.call_later(seconds, self.expel, late)

    # --- what a successor needs (keeping)

    def _note(self, what: str, *words: Any) -> None:
        if self._journal is not None:
            self._journal.note(what, self.number, *words)

    def _be_told(self) -> None:
        transport = self._transport
        assert isinstance(transport, LocalBackSession)
        transport.told = lambda packet, fds: self._note("said", packet, fds)

    def snapshot(self) -> Iterator[Record]:
        """What the journal says of this session."""
        transport = self._transport
        if (
            self._journal is None
            or self.gone
            or self.lost
            or not isinstance(transport, LocalBackSession)
        ):
            return
        yield "session", self.number, self._fd, transport.pid, transport.uid
        for packet, fds in transport.said():
            yield "said", self.number, packet, fds
        yield "last", self.number, transport.last
        ring, guest = self._ring, self.guest
        if ring is not None and guest is not None:
            counts = ring.taken, ring.answered
            yield "ring", self.number, *counts, self._answer, self._waiting, *self._terms()
            yield from guest.snapshot()

    def _terms(self) -> tuple[list[int], int, list[str]]:
        """What the frontend chose. Its nodes may say something else by now."""
        choice = self._choice
        assert choice is not None
        return list(choice.ring_refs), choice.port, [str(each) for each in choice.extensions]

    def go_on(self, kept: KeptSession) -> None:
        """Take up what another backend had begun, as far as nobody else can see it. Raises what mapping the command
        ring does."""
        self._be_told()
        if kept.ring is None or kept.terms is None:
            return
        refs, port, extensions = kept.terms
        self._connect(store.Choice(tuple(refs), port, frozenset(map(Extension, extensions))))
        assert self._page is not None
        taken, answered = kept.ring
        self._ring = _core.BackRing(self._page, taken, answered)
        self._answer, self._waiting = kept.answer, dict(sorted(kept.waiting.items()))
        self._taken.extend((seq, slot, True) for seq, slot in self._waiting.items())
        self._sequence = max(self._waiting, default=0) + 1
        self.state = State.CONNECTED

    def run_on(self) -> None:
        """Serve it from now on."""
        self._backend.loop.add_reader(self._fd, self._readable)
        ring, event, guest = self._ring, self._event, self.guest
        if ring is None or event is None or guest is None or self._page is None:
            self._within(self._backend.limits.handshake)
            self._step(Event.START)
            self._look()
            return
        if ring.shown != ring.answered:  # the other was killed when it had noted its last answer
            taken, before = ring.taken, (ring.answered - 1) & 0xFFFFFFFF
            ring.close()
            self._ring = _core.BackRing(self._page, taken, before)
            self._ring.answer(self._answer)
        try:
            self._transport.write({store.STATE: str(int(self.state))})
        except ProtocolError as error:
            self.expel(str(error))
            return
        event.notify()
        guest.run_on()
        self._catch_up()
        self._hear_requests()
        self._look()

    # --- the state table

    def _readable(self) -> None:
        try:
            alive = self._transport.receive()
        except (ProtocolError, OSError) as error:
            self.expel(str(error))
            return
        self._look()
        if not alive and not self.gone:
            self._reason = self._reason or "it vanished"
            self._step(Event.LOST)

    def _look(self) -> None:
        """Follow the frontend's state; nodes that it has not written yet are no state."""
        text = self._transport.nodes.get(store.STATE)
        if text is None or self.gone:
            return
        seen = states.seen(text)
        if seen != self._seen:
            self._seen = seen
            self._step(seen)

    def _step(self, what: State | Event) -> None:
        if self.gone:
            return
        step = states.back(self.state, what)
        if step.breach:
            word = what.name if isinstance(what, State) else what.value
            self._reason = self._reason or f"state {word} after {self.state.name}"
        try:
            for action in step.actions:
                self._actions[action]()
        except (WireError, GrantError, ProtocolError, OSError) as error:
            self._reason = self._reason or str(error)
            self._step(Event.FAULT)
            return
        if self.gone:
            return
        if step.state != self.state:
            self.state = step.state
            if self.state == State.CLOSING:
                self._within(self._backend.limits.handshake)
            try:
                self._transport.write({store.STATE: str(int(step.state))})
            except ProtocolError as error:
                self._reason = self._reason or str(error)
                self._expel()

    def _publish(self) -> None:
        self._transport.write(self._offer.nodes())

    def _map(self) -> None:
        """Map the command ring and serve. Raises WireError, GrantError."""
        self._connect(store.parse_frontend(self._transport.nodes))
        assert self._ring is not None
        self._note("ring", self._ring.taken, self._ring.answered, b"", {}, *self._terms())
        if self._journal is not None and self.guest is not None:
            self._backend.keep_names(self.guest, -1)
            self._note("names", self.guest.names_fd)
        self._hear_requests()

    def _connect(self, choice: store.Choice) -> None:
        self._choice = choice
        features = store.agree(self._offer, choice)
        self._page = self._transport.map(choice.ring_refs)
        self._event = self._transport.bind(choice.port)
        self._ring = _core.BackRing(self._page)
        backend = self._backend
        self.guest = backend.make_guest(self, features.extensions)
        if self._deadline is not None:
            self._deadline.cancel()
        self.guest.respond = self._respond
        self.guest.breach = self.expel
        self.guest.journal = self._journal

    def _hear_requests(self) -> None:
        transport, backend = self._transport, self._backend
        if self._event is None:
            return
        backend.loop.add_reader(self._event.wait_fd, self._serve)
        # Requests may have come before we could hear of them.
        backend.loop.call_soon(self._serve)
        log.info("%s (pid %d, uid %d) connected", self.name, transport.pid, transport.uid)

    def _unmap(self) -> None:
        guest, self.guest = self.guest, None
        if self._event is not None:
            self._backend.loop.remove_reader(self._event.wait_fd)
        if guest is not None:
            self._note("names", -1)  # what is closed now is soon another's
            guest.end()
            self._note("unringed")
            self._backend.retire(guest)
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        self._taken.clear()
        self._waiting.clear()
        if self._page is not None:
            self._page.release()
            self._page = None
        if self._event is not None:
            self._event.close()
            self._event = None

    def _expel(self) -> None:
        self._free()

    def _free(self) -> None:
        """Let go of the transport; after that there is no session."""
        if self.gone:
            return
        self.gone = True
        self._unmap()
        self._note("gone")
        if self._deadline is not None:
            self._deadline.cancel()
        transport = self._transport
        who = f"{self.name} (pid {transport.pid}, uid {transport.uid})"
        self._backend.loop.remove_reader(self._fd)
        transport.close(self._reason)
        self.state = State.CLOSED
        log.info("%s disconnected%s", who, f": {self._reason}" if self._reason else "")
        self._backend.forget(self)

    # --- the command ring

    def _serve(self) -> None:
        """Take some requests and carry them out; the rest after others had their turn."""
        self._again = False
        ring, event, guest = self._ring, self._event, self.guest
        if ring is None or event is None or guest is None:
            return
        event.clear()
        if not self._taken:
            try:
                self._take(ring.take(self._backend.limits.turn))
            except _core.RingError as error:
                self.expel(str(error))
                return
            if self._taken:
                self._catch_up()
        end = time.monotonic() + TURN
        # A request may end the session.
        while self._taken and self._ring is ring:
            sequence, slot, again = self._taken.popleft()
            guest.serve(slot, sequence, again)
            if time.monotonic() > end:
                break
        if self._ring is ring and (self._taken or ring.arm()):
            self._soon()

    def _take(self, requests: list[bytes]) -> None:
        first = self._sequence
        self._sequence += len(requests)
        self._taken.extend((first + at, slot, False) for at, slot in enumerate(requests))
        if self._journal is not None and requests:
            self._waiting.update(enumerate(requests, first))
            self._note("taken", first, requests)

    def _catch_up(self) -> None:
        """Read what the frontend sent before: it granted there what its requests name."""
        messages = select.poll()
        messages.register(self._fd, select.POLLIN)
        for _ in range(CATCH_UP):
            if self.gone or not messages.poll(0):
                return
            self._readable()

    def _soon(self) -> None:
        if not self._again:
            self._again = True
            self._backend.loop.call_soon(self._serve)

    def _respond(self, slot: bytes, sequence: int) -> None:
        ring, event = self._ring, self._event
        if ring is not None and self._journal is not None:
            self._waiting.pop(sequence, None)
            self._answer = slot
            self._note("answered", sequence, slot)
        if ring is not None and event is not None and ring.answer(slot):
            event.notify()


def program_of(pid: int) -> str:
    """The short name of a program (proc(5), comm); "?" where it does not show."""
    try:
        fd = os.open(f"/proc/{pid}/comm", os.O_RDONLY)
    except OSError:
        return "?"
    try:
        return os.read(fd, 64).decode(errors="replace").rstrip("\n")
    except OSError:
        return "?"
    finally:
        os.close(fd)
