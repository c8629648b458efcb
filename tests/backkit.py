"""A backend in a thread of the test, and frontends that speak PV Calls to it by hand.

`Front` works on any transport session; `pair()` makes one whose both sides are in this process,
where the test can break every rule. Domains without pytest use it, too (tests/xen).
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import select
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.policy.policy import Policy
from xensock.pvcalls.backend import Backend
from xensock.transport.base import PAGE, GrantError
from xensock.wire import indexes, requests, store
from xensock.wire.commands import encode_request
from xensock.wire.extensions import Extension
from xensock.wire.responses import Response
from xensock.wire.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from xensock.calls.call import Decision
    from xensock.calls.record import Record
    from xensock.pvcalls.serving.limits import Limits
    from xensock.pvcalls.serving.session import Session

PATIENCE = 10.0


def until(check: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """What `check` says once it is true."""
    deadline = time.monotonic() + patience
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{check} did not come true within {patience} s")
        time.sleep(0.002)
    return found


class NoNames:
    """A name service that knows nothing."""

    def names_of(self, address: object) -> tuple[str, ...]:
        return ()

    def lapsed(self, address: object) -> tuple[str, ...]:
        return ()

    def keep(self, right: object) -> None:
        """There is nothing to forget."""

    async def explained(
        self, message: bytes, server: object, *, datagram: bool
    ) -> tuple[bytes, Decision] | None:
        return None


class Serving:
    """A backend on an event loop in a thread of its own."""

    def __init__(
        self,
        allow: Sequence[str] = ("loopback", "any"),
        deny: Sequence[str] = (),
        names: Callable[[str], Any] = lambda guest: NoNames(),
        limits: Limits | None = None,
        **more: Any,
    ) -> None:
        self.records: list[Record] = []
        self._more = {"limits": limits, **more}
        self._policy, self._names = Policy.parse(allow, deny), names
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.backend: Backend = self.call(self._make)

    def _make(self) -> Backend:
        return Backend(self._policy, self._names, self.records.append, **self._more)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it on the loop's thread."""

        async def run() -> Any:
            return function(*args)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE)

    def serve(self, transport: Any) -> Session:
        return cast("Session", self.call(self.backend.serve, transport))

    def close(self) -> None:
        stopping = self.backend.stop("the test is over", patience=0.2, linger=1.0)
        asyncio.run_coroutine_threadsafe(stopping, self.loop).result(PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()


# --- a transport within the process


class Channel:
    """One side of an event channel made of two eventfds."""

    def __init__(self, port: int, notify_fd: int, wait_fd: int) -> None:
        self.port, self.notify_fd, self.wait_fd = port, notify_fd, wait_fd

    def notify(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self.notify_fd, 1)

    def clear(self) -> bool:
        try:
            os.eventfd_read(self.wait_fd)
        except OSError:
            return False
        return True

    def close(self) -> None:
        for fd in (self.notify_fd, self.wait_fd):
            if fd >= 0:
                os.close(fd)
        self.notify_fd = self.wait_fd = -1


@dataclass
class Granted:
    memory: memoryview
    refs: tuple[int, ...]

    def free(self) -> None:
        self.memory.release()


@dataclass
class World:
    """What both sides of an in-process session share."""

    pages: int = 16384
    area: mmap.mmap = field(init=False)
    used: int = 1
    channels: dict[int, tuple[int, int]] = field(default_factory=dict)
    bound: set[int] = field(default_factory=set)
    front: dict[str, str] = field(default_factory=dict)
    back: dict[str, str] = field(default_factory=dict)
    gone: bool = False
    reason: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.area = mmap.mmap(-1, self.pages * PAGE)
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __del__(self) -> None:
        for fds in self.channels.values():
            for fd in fds:
                os.close(fd)
        os.close(self.wake)


class BackSide:
    """transport.base.BackSession."""

    lacks: frozenset[Extension] = frozenset()
    waits = False

    guest, uid = "guest", os.getuid()

    def __init__(self, world: World) -> None:
        self.labels: dict[str, str] = {}
        self.pid = os.getpid()
        self._world = world
        self._nodes: dict[str, str] = {}
        self.mapped = 0

    @property
    def nodes(self) -> Mapping[str, str]:
        return self._nodes

    def fileno(self) -> int:
        return self._world.wake

    def receive(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._world.wake)
        with self._world.lock:
            self._nodes = dict(self._world.front)
        return not self._world.gone

    def write(self, nodes: Mapping[str, str]) -> None:
        with self._world.lock:
            self._world.back.update(nodes)

    def map(self, refs: Sequence[int]) -> memoryview:
        first = refs[0]
        if first < 1 or any(ref != first + n for n, ref in enumerate(refs)):
            raise GrantError("these references are not granted")
        if first + len(refs) > self._world.pages:
            raise GrantError("no such page")
        return memoryview(self._world.area)[first * PAGE : (first + len(refs)) * PAGE]

    def bind(self, port: int) -> Channel:
        fds = self._world.channels.get(port)
        if fds is None:
            raise GrantError("no such port")
        return Channel(port, os.dup(fds[1]), os.dup(fds[0]))

    def close(self, reason: str = "") -> None:
        self._world.reason = reason


class FrontSide:
    """As much of transport.base.FrontSession as `Front` needs."""

    def __init__(self, world: World) -> None:
        self.world = world

    @property
    def nodes(self) -> Mapping[str, str]:
        with self.world.lock:
            return dict(self.world.back)

    def allocate(self, pages: int) -> Granted:
        first = self.world.used
        self.world.used += pages
        view = memoryview(self.world.area)[first * PAGE : (first + pages) * PAGE]
        return Granted(view, tuple(range(first, first + pages)))

    def event(self) -> Channel:
        port = len(self.world.channels) + 1
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        fds = self.world.channels[port] = (os.eventfd(0, flags), os.eventfd(0, flags))
        return Channel(port, os.dup(fds[0]), os.dup(fds[1]))

    def write(self, nodes: Mapping[str, str]) -> None:
        with self.world.lock:
            self.world.front.update(nodes)
        os.eventfd_write(self.world.wake, 1)

    def close(self) -> None:
        self.world.gone = True
        with contextlib.suppress(OSError):
            os.eventfd_write(self.world.wake, 1)


def pair() -> tuple[FrontSide, BackSide]:
    """Both sides of a session."""
    world = World()
    return FrontSide(world), BackSide(world)


# --- a frontend by hand


class Stream:
    """A data ring as the frontend has it."""

    def __init__(self, front: Front, order: int = 3) -> None:
        self.front = front
        self.pages = front.session.allocate(1 + (1 << order))
        self.event = front.session.event()
        self.page, self.data = self.pages.memory[:PAGE], self.pages.memory[PAGE:]
        events = Extension.DATA_EVENTS in front.extensions
        self.ring = _core.DataRing(self.page, self.data, "front", events, True)
        indexes.write_layout(self.page, indexes.Layout(order, tuple(self.pages.refs[1:])))
        self.ref, self.port = self.pages.refs[0], self.event.port

    def send(self, data: bytes) -> None:
        while data:
            count, notify = self.ring.write(data)
            if notify:
                self.event.notify()
            data = data[count:]
            if not count:
                if self.ring.out_error:
                    raise OSError(-self.ring.out_error, "out_error")
                self.wait(self.ring.arm_write)

    def wait(self, arm: Callable[[], bool]) -> None:
        self.event.clear()
        if not arm():
            ready, _, _ = select.select([self.event.wait_fd], [], [], PATIENCE)
            assert ready, "no event came"

    def recv(self, most: int = 65536) -> bytes:
        """Bytes; b"" at the orderly end. Raises OSError for what is no orderly end."""
        while True:
            data, notify = self.ring.read(most)
            if notify:
                self.event.notify()
            if data:
                return data
            if self.ring.read_error == -107:
                return b""
            if self.ring.read_error:
                raise OSError(-self.ring.read_error, os.strerror(-self.ring.read_error))
            self.wait(self.ring.arm_read)

    def recv_all(self) -> bytes:
        return b"".join(iter(self.recv, b""))

    def recv_exactly(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            more = self.recv(count - len(got))
            assert more, f"the stream ended after {len(got)} of {count} bytes"
            got += more
        return got

    def free(self) -> None:
        self.ring.close()
        self.page.release()
        self.data.release()
        self.event.close()
        self.pages.free()


class Front:
    """A frontend that does what the test says."""

    def __init__(
        self, session: Any, extensions: frozenset[Extension] = frozenset(), order: int = 0
    ) -> None:
        self.session = session
        self.extensions = extensions
        self.order = order
        self.responses: dict[int, Response] = {}
        self.event: Any = None
        self._last = 0
        self._ids = 0
        self.streams: deque[Stream] = deque()

    @property
    def back(self) -> State:
        return State(int(self.session.nodes.get("state", "0")))

    def state(self, state: State) -> None:
        self.session.write({"state": str(int(state))})

    def handshake(self) -> Front:
        """As far as CONNECTED on both sides."""
        self.offer()
        self.publish()
        until(lambda: self.back == State.CONNECTED)
        self.state(State.CONNECTED)
        return self

    def offer(self) -> store.Offer:
        self.state(State.INITIALISING)
        until(lambda: self.back == State.INIT_WAIT)
        return store.parse_backend(self.session.nodes)

    def publish(self) -> None:
        self.prepare()
        self.choose()

    def prepare(self) -> None:
        self.pages = self.session.allocate(1 << self.order)
        self.event = self.session.event()
        self.ring = _core.FrontRing(self.pages.memory, True)

    def choose(self) -> None:
        choice = store.Choice(
            tuple(self.pages.refs), self.event.port, self.extensions, multi_page=self.order > 0
        )
        self.session.write({**choice.nodes(), "state": str(int(State.INITIALISED))})

    def new_id(self) -> int:
        self._ids += 1
        return self._ids

    def submit(self, request: requests.Request) -> int:
        """Send a request; its cookie."""
        self._last += 1
        self.push(encode_request(self._last, request))
        return self._last

    def push(self, slot: bytes) -> None:
        if self.ring.push(slot):
            self.event.notify()

    def result(self, cookie: int, patience: float = PATIENCE) -> Response:
        """The response to a request."""
        deadline = time.monotonic() + patience
        while cookie not in self.responses:
            self.event.clear()
            if self.collect() or self.ring.arm():
                continue
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.event.wait_fd], [], [], left)[0]:
                raise AssertionError(f"no response to {cookie}, there are {self.responses}")
        return self.responses.pop(cookie)

    def collect(self) -> int:
        count = 0
        while (slot := self.ring.pop()) is not None:
            response = Response.decode(slot)
            assert response.req_id not in self.responses, "answered twice"
            self.responses[response.req_id] = response
            count += 1
        return count

    def pending(self, cookie: int, moment: float = 0.05) -> bool:
        """Whether there is no response for a moment."""
        try:
            self.result(cookie, moment)
        except AssertionError:
            return True
        return False

    def command(self, request: requests.Request) -> Response:
        return self.result(self.submit(request))

    def ret(self, request: requests.Request) -> int:
        return self.command(request).ret

    def socket(self, domain: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> int:
        id = self.new_id()
        assert self.ret(requests.Socket(id, domain, kind, 0)) == 0
        return id

    def stream(self, order: int = 3) -> Stream:
        stream = Stream(self, order)
        self.streams.append(stream)
        return stream

    def connect(self, address: tuple[Any, ...], flags: int = 0) -> tuple[int, Stream, Response]:
        id = self.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        stream = self.stream()
        response = self.command(
            requests.Connect(id, sockaddr(*address[:2]), flags, stream.ref, stream.port)
        )
        return id, stream, response

    def listener(self, host: str = "127.0.0.1", port: int = 0, backlog: int = 8) -> int:
        id = self.socket()
        assert self.ret(requests.Bind(id, sockaddr(host, port))) == 0
        assert self.ret(requests.Listen(id, backlog)) == 0
        return id

    def accept(self, listener: int) -> tuple[int, int, Stream]:
        """Cookie, new id, ring of an ACCEPT that was sent."""
        stream, id = self.stream(), self.new_id()
        cookie = self.submit(requests.Accept(listener, id, stream.ref, stream.port))
        return cookie, id, stream

    def close(self) -> None:
        self.session.close()
        for stream in self.streams:
            stream.free()
        if self.event is not None:
            self.event.close()


def sockaddr(host: str, port: int) -> bytes:
    return Endpoint.from_python((host, port)).sockaddr()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def front(
    serving: Serving, extensions: frozenset[Extension] = frozenset(), order: int = 0
) -> Iterator[Front]:
    """A connected frontend in this process."""
    near, far = pair()
    serving.serve(far)
    made = Front(near, extensions, order).handshake()
    try:
        yield made
    finally:
        made.close()
        until(lambda: near.world.reason is not None)
