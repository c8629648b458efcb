"""The frontend: socket calls over a command ring, from any thread of a process.

Theory of operation: `submit` puts a request into the ring and gives a Future; one thread reads the answers, which come
in any order. The session's states are those of wire.states; what the backend does to them arrives on the transport's
thread. When the session is over every call that waits fails, and new ones too.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import select
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import TYPE_CHECKING

from xensock import _core
from xensock.pvcalls.calltable import CallTable, make_call
from xensock.pvcalls.datapages import DataPages, Spares
from xensock.transport.base import TransportError
from xensock.wire import store
from xensock.wire.commands import encode_request
from xensock.wire.errors import WireError, from_wire
from xensock.wire.extensions import ALL, NEEDS, Extension
from xensock.wire.responses import Response
from xensock.wire.states import Action, Event, State, front, seen

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    from xensock.transport.base import Event as Channel
    from xensock.transport.base import FrontSession, Nodes, Pages
    from xensock.wire.commands import Request
    from xensock.wire.states import Input

WANTED = ALL - {Extension.SHARED_RINGS}
"""What this frontend can use; the mover, which works for it, has the rings to itself."""
RING_PAGE_ORDER = 2
"""Four pages, 128 slots, where the backend takes them."""
HANDSHAKE_S = 10.0
GOODBYE_S = 2.0

log = logging.getLogger("xensock.pvcalls")


class Frontend:
    """One session at a backend. Methods may be called from any thread of the process that made it."""

    def __init__(
        self,
        session: FrontSession,
        *,
        wanted: Set[Extension] = WANTED,
        ring_page_order: int = RING_PAGE_ORDER,
        timeout: float = HANDSHAKE_S,
    ) -> None:
        """Shake hands; `wanted` extensions are used where the backend has them.

        Raises WireError for a backend that breaks the protocol, TimeoutError, TransportError. The session is closed
        then.
        """
        self.session = session
        self.features = store.Features()
        self._wanted = wanted
        self._ring_page_order = ring_page_order
        self._ids = itertools.count(1)
        self._state = State.UNKNOWN
        self._other = State.UNKNOWN
        self._stepping = threading.RLock()  # of the states
        self._lock = threading.Lock()  # of the ring and the table
        self._table: CallTable | None = None
        self._ring: _core.FrontRing | None = None
        self._pages: Pages | None = None
        self._channel: Channel | None = None
        self._spares: Spares | None = None
        self._pid = os.getpid()
        self._over: OSError | None = None
        self._when_over: Callable[[], None] | None = None
        self._breach = ""
        self._settled = threading.Event()
        self._freed = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._reader: threading.Thread | None = None
        try:
            self._step(Event.START)
            session.on_change(self._changed)
            self._changed(session.nodes)
            if not self._settled.wait(timeout):
                raise TimeoutError(errno.ETIMEDOUT, "the backend does not answer the handshake")
            if self._state is not State.CONNECTED:
                raise self._why()
        except BaseException:
            self.close(0)
            raise

    # --- calls

    def new_id(self) -> int:
        """An id for a socket, never given before."""
        return next(self._ids)

    def submit(self, request: Request) -> Future[Response]:
        """Send a request; the Future gets its answer, whatever that says.

        The Future's exception is OSError (ENOTCONN, ECONNRESET) when the session ends first. Its callbacks run on the
        thread that reads answers, and must not wait for one. Raises OSError when the session is over, WireError for a
        request that has no room in a slot, RuntimeError in a child of fork(2).
        """
        self._here()
        future: Future[Response] = Future()
        call = make_call(request, future)
        encode_request(0, request)  # what cannot be said fails here, not in the queue
        with self._lock:
            if self._over is not None or self._table is None:
                raise self._lost()
            self._table.add(call)
            self._send()
        return future

    def command(self, request: Request, timeout: float | None = None) -> Response:
        """Send a request and wait for its answer. Raises OSError: what the answer says, ETIMEDOUT after `timeout`
        seconds (the answer is dropped when it comes)."""
        future = self.submit(request)
        try:
            response = future.result(timeout)
        except FutureTimeout:
            future.cancel()
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
        if response.ret < 0:
            number = from_wire(response.ret)
            raise OSError(number, os.strerror(number))
        return response

    def when_over(self, callback: Callable[[], None]) -> None:
        """Have callback() called once when the session is over, at once if it is. It must not wait for anything."""
        with self._lock:
            if self._over is None:
                self._when_over = callback
                return
        callback()

    def data_ring(self, order: int) -> DataPages:
        """A data ring of 2^order pages, or of the largest order that the backend takes. Raises OSError."""
        self._here()
        if self._spares is None or self._over is not None:
            raise self._lost()
        return self._spares.take(max(1, min(order, self.features.max_page_order)))

    def _send(self) -> None:
        """Put what may go into the ring; the lock is held."""
        if self._table is None or self._ring is None or self._channel is None:
            return
        notify = False
        while self._ring.free and (found := self._table.next()) is not None:
            cookie, call = found
            notify |= self._ring.push(encode_request(cookie, call.request))
        if notify:
            self._channel.notify()

    # --- answers

    def _read(self, channel: Channel) -> None:
        poll = select.poll()
        poll.register(channel.wait_fd, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        try:
            while self._over is None:
                channel.clear()
                if self._answers():
                    continue
                poll.poll()
        except (_core.RingError, WireError) as error:
            self._breach = str(error)
            self._step(Event.FAULT)
        finally:
            self._freed.wait()
            channel.close()

    def _answers(self) -> bool:
        """Deliver what is there; whether more came meanwhile. Raises RingError, WireError."""
        done = []
        try:
            with self._lock:
                if self._ring is None or self._table is None or self._over is not None:
                    return False
                while (slot := self._ring.pop()) is not None:
                    response = Response.decode(slot)
                    if not self.features.extensions:
                        # Linux's backend leaves there what the slot had before, a request of ours.
                        response = replace(response, body=b"")
                    call = self._table.take(response.req_id, response.cmd)
                    if call is None:
                        # v1 says that the command is echoed; Linux's backend always does.
                        raise WireError(
                            f"an answer to {response.req_id}, command {response.cmd}, which was not asked"
                        )
                    done.append((call, response))
                self._send()
                return self._ring.arm()
        finally:
            # Also those that came before an answer that breaks the rules.
            for call, response in done:
                call.future.set_result(response)

    # --- states

    def _changed(self, nodes: Nodes) -> None:
        """On the transport's thread: the backend's nodes changed, or the session is over."""
        if self.session.error is not None:
            self._step(Event.LOST)
            return
        if store.STATE in nodes:
            self._step(seen(nodes[store.STATE]))

    def _step(self, what: Input) -> None:
        with self._stepping:
            if isinstance(what, State):
                self._other = what
            self._one_step(what)
            # The other's state is given again until nothing changes (wire.states).
            while isinstance(what, State) or what is Event.START:
                before = self._state
                if self._other is not State.UNKNOWN:
                    self._one_step(self._other)
                if self._state is before:
                    break
            if self._state in (State.CONNECTED, State.CLOSED):
                self._settled.set()
            if self._state is State.CLOSED:
                self._freed.set()

    def _one_step(self, what: Input) -> None:
        step = front(self._state, what)
        if step.breach:
            name = what.name if isinstance(what, State) else what.value
            self._breach = (
                self._breach or f"the backend went to {name} while we were {self._state.name}"
            )
        try:
            for action in step.actions:
                self._act(action)
        except (WireError, OSError) as error:
            if what is Event.FAULT:
                raise
            self._breach = self._breach or str(error)
            self._one_step(Event.FAULT)
            return
        if step.state is not self._state:
            self._state = step.state
            with contextlib.suppress(OSError):  # whom it would tell is gone
                self.session.write({store.STATE: str(int(step.state))})

    def _act(self, action: Action) -> None:
        if action is Action.PUBLISH:
            self._publish()
        elif action is Action.OPEN:
            if self._channel is None:
                raise WireError("no command ring")
            self._reader = threading.Thread(
                target=self._read, args=(self._channel,), name="xs-answers", daemon=True
            )
            self._reader.start()
        elif action is Action.FAIL:
            self._fail()
        elif action is Action.FREE:
            self._free()

    def _publish(self) -> None:
        """Read the offer, make the command ring, write our choice. Raises WireError, OSError."""
        offer = store.parse_backend(self.session.nodes)
        chosen = self._wanted & offer.extensions
        chosen = frozenset(each for each in chosen if NEEDS.get(each, each) in chosen)
        order = min(self._ring_page_order, offer.max_ring_page_order)
        self._pages = self.session.allocate(1 << order)
        self._channel = self.session.event()
        choice = store.Choice(self._pages.refs, self._channel.port, chosen, multi_page=order > 0)
        self.features = store.agree(offer, choice)
        self._spares = Spares(self.session, Extension.DATA_EVENTS in self.features)
        with self._lock:
            self._ring = _core.FrontRing(self._pages.memory, True)
            self._table = CallTable(self.features.slots)
        self.session.write(choice.nodes())

    def _fail(self) -> None:
        with self._lock:
            error = self._over = self._over or self._why()
            calls = self._table.clear() if self._table is not None else []
            heard, self._when_over = self._when_over, None
        os.eventfd_write(self._wake, 1)
        for call in calls:
            call.future.set_exception(OSError(error.errno, error.strerror))
        if heard is not None:
            heard()

    def _free(self) -> None:
        with self._lock:
            self._over = self._over or self._why()
            ring, self._ring = self._ring, None
            pages, self._pages = self._pages, None
            channel, self._channel = self._channel, None
            if ring is not None:
                ring.close()
        if pages is not None:
            pages.free()
        if self._spares is not None:
            self._spares.close()
        if self._reader is None and channel is not None:
            channel.close()  # else the thread that waits for it does
        os.eventfd_write(self._wake, 1)

    def _why(self) -> OSError:
        if self.session.error is not None:
            return self.session.error
        if self._breach:
            return TransportError(errno.EPROTO, self._breach)
        return TransportError(errno.ENOTCONN, "the session with the backend is over")

    def _here(self) -> None:
        # In a child the locks may be held by threads that are not there, and the ring is the parent's.
        if os.getpid() != self._pid:
            raise RuntimeError("this XenSock session belongs to the parent process: make another")

    def _lost(self) -> OSError:
        error = self._over or self._why()
        return OSError(error.errno, error.strerror)

    @property
    def error(self) -> OSError | None:
        """Why the session is over; None while it is not."""
        return self._over

    def close(self, timeout: float = GOODBYE_S) -> None:
        """End the session in order, waiting up to `timeout` seconds for the backend to let go. Idempotent. Raises
        RuntimeError in a child of fork(2)."""
        self._here()
        self._step(Event.STOP)
        if self._state is not State.CLOSED and not self._freed.wait(timeout):
            log.debug("the backend does not let go; leaving")
        with self._stepping:
            pass  # the step that frees also says that we are closed
        self.session.close()
        if self._state is not State.CLOSED:
            self._step(Event.LOST)
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join()
        with self._lock:
            if self._wake >= 0:
                os.close(self._wake)
                self._wake = -1
