"""The own sockets of one process at one backend: the frontend, the mover of their bytes, the thread that serves them.

Theory of operation: a program holds one end of an AF_UNIX socket pair; the mover moves bytes between the other end and
the data ring. poll, select, epoll, dup and descriptor passing are therefore the kernel's own. What has no bytes —
connect, bind, options, names — goes as a command. A program that closes its end is seen by the hang-up of the other.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
import weakref
from socket import SOCK_STREAM
from typing import TYPE_CHECKING, Protocol

from xensock import _core
from xensock.client import kernel
from xensock.client.room import Departures, Leaving
from xensock.loop import IN, Loop
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from xensock.client.held import Held
    from xensock.client.names import NameService
    from xensock.pvcalls.datapages import DataPages
    from xensock.pvcalls.frontend import Frontend

ORDER = 5  # 64 KiB each way
DATAGRAM_ORDER = 7  # 256 KiB: some of the longest datagrams
COMMAND_S = 30.0  # a backend that does not answer for so long is taken for lost

EOF, RESET = "eof", "reset"


class Moved(Protocol):
    """Whose bytes the mover moves. `type` is the socket's (SOCK_STREAM…)."""

    type: int

    def end_of_stream(self) -> None:
        """The program said that it sends no more."""

    def reset_by_program(self) -> None:
        """The program reset the connection."""

    def release(self, wait: bool = False) -> None:
        """Close it at the backend; `wait` for its answer."""

    def lost(self) -> None:
        """There is no backend any more."""

    def moved(self, sent: int, received: int, error: int) -> None:
        """The mover is done: everything is delivered, or `error` ended it."""


_links: weakref.WeakSet[Link] = weakref.WeakSet()


class Link:
    """Everything own sockets share. Methods may be called from any thread."""

    def __init__(self, frontend: Frontend, order: int = ORDER, splices: bool = False) -> None:
        """`splices`: bytes of a connection flow when Stream.splice() says where to, not before."""
        self.frontend = frontend
        self.order = order
        self.splices = splices
        self.datagram_order = DATAGRAM_ORDER
        self.pid = os.getpid()
        self.loop = Loop("xs-sockets")
        self.by_inode: dict[tuple[int, int], Held] = {}
        self.by_name: dict[bytes, Held] = {}  # accepted ones, by the name they knocked with
        self._mover = _core.mover_open(min(os.cpu_count() or 1, 4))
        self._lock = threading.Lock()  # of _flows
        self._flows: dict[int, Moved] = {}
        self._streams: set[int] = set()  # tokens of the flows that are connections
        self._sending: set[int] = set()  # of those whose program may send more
        self._quiet = threading.Condition(self._lock)  # one of them less
        self._names: dict[int, NameService] = {}  # by their hops
        self.departures = Departures(self._leaving)
        _links.add(self)
        self._closing = False
        frontend.when_over(self._session_over)
        self.loop.add(_core.mover_fd(self._mover), IN, lambda _: self._fetch())

    def has(self, extension: Extension) -> bool:
        """Whether the backend offers an extension and we asked for it."""
        return extension in self.frontend.features

    @property
    def has_options(self) -> bool:
        """Whether setsockopt(2) can do anything there."""
        return self.has(Extension.OPTIONS)

    @property
    def informed(self) -> bool:
        """Whether datagrams come and go with what IP says beside their payload."""
        return self.has(Extension.PACKET_INFO)

    def move(self, flow: Moved, end: socket.socket, pages: DataPages) -> int:
        """Let the mover move between the socket pair's end, which is taken, and the ring."""
        with self._lock:
            token = _core.mover_add_ring(
                self._mover,
                end.detach(),
                pages.indexes,
                pages.data,
                "front",
                pages.event.notify_fd,
                pages.event.wait_fd,
                self.has(Extension.DATA_EVENTS),
                True,
                flow.type == SOCK_STREAM and self.has(Extension.URGENT),
            )
            self._flows[token] = flow
            if flow.type == SOCK_STREAM:
                self._sending.add(token)
                self._streams.add(token)
        return token

    def held_by(self, fd: int) -> Held | None:
        """The socket whose descriptor this is: one of ours, or of a connection that came in by a door."""
        found = self.by_inode.get(inode_of(fd))
        if found is not None:
            return found
        with kernel.socket(fileno=os.dup(fd)) as plain:
            try:
                name = plain.getpeername()
            except OSError:
                return None
        return self.by_name.get(name) if isinstance(name, bytes) else None

    def forget(self, stream: Held) -> None:
        """It ended: the number of its inode, and its name, may come again."""
        if self.by_inode.get(stream.inode) is stream:
            del self.by_inode[stream.inode]
        self.by_name.pop(stream.knocked, None)

    def remember(self, stream: Held, fd: int) -> None:
        """Know the stream by its descriptor, and by every duplicate of it."""
        stream.inode = inode_of(fd)
        self.by_inode[stream.inode] = stream

    def name_service(self, hops: int = 0) -> NameService:
        """Who resolves names, made when it is first asked for; `hops`: how many backends pass the questions on. Raises
        OSError where the backend does not resolve."""
        from xensock.client.names import NameService

        with self._lock:
            if hops in self._names:
                return self._names[hops]
        made = NameService(self, hops)
        with self._lock:
            before = self._names.setdefault(hops, made)
        if before is not made:
            made.close()
        return before

    def counted(self, token: int) -> tuple[int, int] | None:
        """Bytes sent and received so far; None once it has ended."""
        return _core.mover_bytes(self._mover, token)

    def live(self) -> int:
        """Connections whose bytes flow."""
        return len(self._streams)

    def finish(self, patience: float) -> None:
        """Close every connection in order: what programs sent is delivered. Those who have not ended their streams get
        up to `patience` seconds to do so."""
        deadline = time.monotonic() + patience
        with self._lock:
            while self._sending and (left := deadline - time.monotonic()) > 0:
                self._quiet.wait(left)
            flows = [self._flows[token] for token in self._streams]
        for flow in flows:
            flow.release(wait=True)

    def close(self) -> None:
        """End every socket and the frontend. Idempotent."""
        _links.discard(self)
        with self._lock:
            if self._closing:
                return
            self._closing = True
            services, self._names = list(self._names.values()), {}
        for names in services:
            names.close()
        self.loop.stop()
        self._end_all()
        _core.mover_close(self._mover, 0)
        self.frontend.close()

    def _session_over(self) -> None:
        """On any thread: the backend is gone, or we are leaving."""
        with self._lock:
            if not self._closing:
                self.loop.later(0, self._end_all)

    def _end_all(self) -> None:
        """Every socket fails, and whoever waits at one is told."""
        with self._lock:
            helds = {*self.by_inode.values(), *self.by_name.values(), *self._flows.values()}
        for held in helds:
            held.lost()

    def cut(self, token: int) -> None:
        """The program's end hangs up. Flow.moved() follows."""
        _core.mover_release(self._mover, token, True, 0)

    def _fetch(self) -> None:
        for token, kind, _, _ in _core.mover_notices(self._mover):
            with self._lock:
                flow = self._flows.get(token)
            if flow is None:
                continue
            if kind == EOF:
                flow.end_of_stream()
            elif kind == RESET:
                flow.reset_by_program()
            self._heard(token)
        for token, received, sent, error, _ in _core.mover_ended(self._mover):
            with self._lock:
                flow = self._flows[token]
                self._streams.discard(token)
            try:
                flow.moved(sent, received, error)
            finally:
                with self._lock:
                    del self._flows[token]  # not before its release is on its way
            self._heard(token)

    def _leaving(self) -> Leaving:
        """The furthest that any socket is on its way out."""
        with self._lock:
            tokens = list(self._flows)
            ends = list(self.by_inode.values())
        found = max((_core.mover_leaving(self._mover, token) for token in tokens), default=0)
        if any(held.left() for held in ends):
            return Leaving.GONE
        return Leaving(found)

    def _heard(self, token: int) -> None:
        """Nothing more will be sent by this flow's program."""
        with self._lock:
            self._sending.discard(token)
            self._quiet.notify_all()


def held_by(fd: int) -> Held | None:
    """The own socket whose descriptor this is, of whatever backend."""
    return next((held for link in list(_links) if (held := link.held_by(fd)) is not None), None)


def inode_of(fd: int) -> tuple[int, int]:
    """What tells a file from every other, however many descriptors it has."""
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def watch_hang_up(loop: Loop, end: socket.socket, gone: Callable[[], None]) -> None:
    """Call gone() once when nobody holds the other end of a socket pair any more."""

    def handler(_: int) -> None:
        poll = select.poll()
        poll.register(fd, 0)
        if not poll.poll(0):
            return  # it was about another file, that had this number before
        if loop.remove(fd, handler):
            gone()  # else another thread is closing it

    fd = end.fileno()
    loop.add(fd, 0, handler)


def unwatch(loop: Loop, end: socket.socket) -> None:
    """Undo watch_hang_up(); an end that is not watched, or closed, is fine."""
    with contextlib.suppress(ValueError, OSError):
        loop.remove(end.fileno())
