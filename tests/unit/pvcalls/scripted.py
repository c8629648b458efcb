"""A backend that does what the test says, over the local transport: the other side of a Frontend."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import threading
import time
from typing import TYPE_CHECKING

from xensock._core import BackRing
from xensock.pvcalls.frontend import Frontend
from xensock.transport.local_back import listen
from xensock.transport.local_front import connect
from xensock.wire import store
from xensock.wire.commands import Request, Response, command_of, decode_request
from xensock.wire.extensions import ALL
from xensock.wire.states import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE = 10.0

# Where a backend can stop talking during the handshake.
STEPS = ("accept", "welcome", "offer", "choice", "map", "connected")


class Script:
    """Shakes hands by itself, up to `until`; requests are for the test to `take` and `answer`."""

    def __init__(
        self,
        directory: Path,
        offer: store.Offer | dict[str, str] | None = None,
        until: str = "connected",
    ) -> None:
        offer = store.Offer() if offer is None else offer
        self.offer = offer.nodes() if isinstance(offer, store.Offer) else offer
        self.requests: queue.Queue[tuple[int, Request]] = queue.Queue()
        self.states: list[int] = []
        self.echo: Callable[[int, Request], Response] | None = None
        self.follow = True  # answer Closing by Closing
        self.ring: BackRing | None = None
        self.event = None
        self.page: memoryview | None = None
        self.session = None
        self._until = STEPS.index(until)
        self._listener = listen(str(directory / "backend"))
        self._path = str(directory / "backend")
        self._wake = os.eventfd(0)
        self._jobs: queue.Queue[Callable[[], None]] = queue.Queue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def frontend(self, **options: object) -> Frontend:
        return Frontend(connect(self._path, name="test"), **options)  # type: ignore[arg-type]

    # --- for the test

    def take(self) -> tuple[int, Request]:
        return self.requests.get(timeout=PATIENCE)

    def idle(self) -> bool:
        """Whether no request is there though the frontend had every chance."""
        self.call(self._serve)
        return self.requests.empty()

    def answer(self, req_id: int, request: Request, ret: int = 0, body: bytes = b"") -> None:
        self.respond(Response(req_id, command_of(request), ret, request.id, body))

    def respond(self, response: Response) -> None:
        self.call(lambda: self._respond(response))

    def state(self, state: State) -> None:
        self.call(lambda: self.session.write({store.STATE: str(int(state))}))

    def vanish(self, reason: str = "") -> None:
        self.call(lambda: self._drop(reason))

    def call(self, job: Callable[[], None]) -> None:
        """Do it on the backend's thread, and wait for it."""
        done = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            try:
                job()
            except BaseException as error:
                failed.append(error)
            done.set()

        self._jobs.put(run)
        os.eventfd_write(self._wake, 1)
        assert done.wait(PATIENCE)
        if failed:
            raise failed[0]

    def close(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(SystemExit):
                self.call(self._stop)
            self._thread.join(PATIENCE)
        os.close(self._wake)

    # --- the backend's thread

    def _run(self) -> None:
        self._alive = True
        while self._alive:
            wait = [self._wake]
            if self._listener.fileno() >= 0:
                wait.append(self._listener.fileno())
            if self.session is not None and self.session.fileno() >= 0:
                wait.append(self.session.fileno())
            if self.event is not None:
                wait.append(self.event.wait_fd)
            ready = select.select(wait, [], [])[0]
            if self._wake in ready:
                os.eventfd_read(self._wake)
                while not self._jobs.empty():
                    self._jobs.get()()
            if self._listener.fileno() in ready:
                self._accept()
            if self.session is not None and self.session.fileno() in ready:
                self._receive()
            self._serve()

    def _accept(self) -> None:
        self.session = self._listener.accept()
        self._listener.close()
        if self._until == 0:
            self._drop()

    def _receive(self) -> None:
        alive = self.session.receive()
        self._look()
        if not alive:
            self._drop()

    def _look(self) -> None:
        if not self.session.guest:
            return
        if self._until == 1:
            self._drop()
            return
        if not self.states:
            self.states.append(-1)
            self.session.write({**self.offer, store.STATE: str(int(State.INIT_WAIT))})
            if self._until == 2:
                self._drop()
                return
        state = int(self.session.nodes.get(store.STATE, self.states[-1]))
        if state == self.states[-1]:
            return
        self.states.append(state)
        if state == State.INITIALISED:
            self._connect()
        elif state == State.CLOSING and self.follow:
            self._unmap()
            self.session.write({store.STATE: str(int(State.CLOSING))})
        elif state == State.CLOSED:
            self._drop()

    def _connect(self) -> None:
        if self._until == 3:
            self._drop()
            return
        choice = store.parse_frontend(self.session.nodes)
        self.page = self.session.map(choice.ring_refs)
        self.event = self.session.bind(choice.port)
        self.ring = BackRing(self.page)
        if self._until == 4:
            self._drop()
            return
        self.session.write({store.STATE: str(int(State.CONNECTED))})

    def _serve(self) -> None:
        if self.ring is None or self.event is None:
            return
        self.event.clear()
        while True:
            for slot in self.ring.take():
                found = decode_request(slot, ALL)
                if self.echo is not None:
                    self._respond(self.echo(*found))
                else:
                    self.requests.put(found)
            if not self.ring.arm():
                return

    def _respond(self, response: Response) -> None:
        assert self.ring is not None
        if self.ring.answer(response.encode()):
            self.event.notify()

    def _unmap(self) -> None:
        if self.ring is not None:
            self.ring.close()
        if self.page is not None:
            self.page.release()
        if self.event is not None:
            self.event.close()
        self.ring = self.page = self.event = None

    def _drop(self, reason: str = "") -> None:
        self._unmap()
        if self.session is not None:
            self.session.close(reason)

    def _stop(self) -> None:
        self._drop()
        self._listener.close()
        self._alive = False


def until(check: Callable[[], object], patience: float = PATIENCE) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + patience
    while not check():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.001)
