"""A listening socket: connections of the backend come in by a unix listener that stands for it.

The program's descriptor becomes that unix listener, so that poll, accept and the queue of what was not yet accepted
are the kernel's, also for a child that was forked. Every connection knocks there with a name of its own, by which
accept finds out whose it is.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import threading
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING

from xensock.client import kernel
from xensock.client.held import State, outcome
from xensock.client.stream import Stream
from xensock.wire.commands import Accept, Listen, Poll

if TYPE_CHECKING:
    from concurrent.futures import Future

    from xensock.pvcalls.datapages import DataPages
    from xensock.wire.commands import Response

MARK = b"\0xensock-"
RETRY_S = 0.01
ANSWER_S = 1.0


def knock_name() -> bytes:
    """A name in the abstract namespace of unix(7) that nobody guesses."""
    return MARK + secrets.token_hex(12).encode()


class Door:
    """The unix listener of one listening stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.name = b""
        # Linux's backend takes its kernel down when a listener is released before the work that ACCEPT queued has
        # begun. So it is asked by POLL, and to accept when somebody is there, which it answers at once.
        self._polls = not stream.link.frontend.features.extensions
        self._lock = threading.Lock()  # of the two below
        self._closed = False
        self._asked: Future[Response] | None = None

    def open(self, backlog: int) -> socket.socket | None:
        """listen(2): the unix listener that is to take the descriptor's place; None where it has. Raises OSError."""
        self.stream.command(Listen(self.stream.id, max(backlog, 0)))
        if self.name:
            return None
        outer = kernel.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.name = knock_name()
        outer.bind(self.name)
        outer.listen(max(backlog, 0))
        self.stream.state = State.LISTENING
        return outer

    def held(self) -> bool:
        """Whether somebody still holds the unix listener. One that is gone answers so (unix(7), ECONNREFUSED); one that
        is there may notice a caller that hangs up, which accept() passes over."""
        with kernel.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            return probe.connect_ex(self.name) != errno.ECONNREFUSED

    def knock(self) -> None:
        """Wake who waits in accept(2), and make it fail, as there is no backend any more."""
        with kernel.socket(socket.AF_UNIX, socket.SOCK_STREAM) as nobody:
            nobody.setblocking(False)
            nobody.connect_ex(self.name)

    def wait(self) -> None:
        """Ask the backend for the next connection."""
        if not self._polls:
            self._accept()
            return
        with contextlib.suppress(OSError):
            future = self.stream.submit(Poll(self.stream.id))
            future.add_done_callback(
                lambda done: self.stream.link.loop.later(0, lambda: self._polled(done))
            )

    def _polled(self, done: Future[Response]) -> None:
        response = outcome(done)
        if isinstance(response, int) or self.stream.state is not State.LISTENING:
            return
        if response.ret < 0:
            self.stream.link.loop.later(RETRY_S, self.wait)
        else:
            self._accept()

    def _accept(self) -> None:
        stream = self.stream
        link = stream.link
        pages = link.frontend.data_ring(link.order)
        new = link.frontend.new_id()
        with self._lock:
            try:
                if self._closed:
                    raise OSError(errno.EBADF, "the listener is closed")
                future = self._asked = stream.submit(Accept(stream.id, new, pages.ref, pages.port))
            except OSError:
                pages.free()
                return
        future.add_done_callback(
            lambda done: link.loop.later(0, lambda: self._came(done, new, pages))
        )

    def close(self) -> None:
        """The listener is about to be released: ask no more, and let the backend answer what it answers at once."""
        with self._lock:
            self._closed = True
            asked = self._asked
        if self._polls and asked is not None:
            with contextlib.suppress(FutureTimeout, CancelledError):
                asked.exception(ANSWER_S)

    def _came(self, done: Future[Response], new: int, pages: DataPages) -> None:
        response = outcome(done)
        if isinstance(response, int) or response.ret < 0:
            pages.free()
            if self.stream.state is State.LISTENING and not isinstance(response, int):
                # Descriptors are short there, or the connection went again.
                self.stream.link.loop.later(RETRY_S, self.wait)
            return
        name = knock_name()
        caller = kernel.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        caller.bind(name)
        child = Stream(self.stream.link, self.stream.family, caller, accepted=new)
        child.peer = response.address
        child.shown = self.stream.shown
        child.buffers(*self.stream.sizes)
        child.adopt(pages)  # before anybody can accept it
        child.knocked = name
        child.link.by_name[name] = child
        self._knock(child)

    def _knock(self, child: Stream) -> None:
        error = child.end.connect_ex(self.name)
        if error == errno.EAGAIN and self.stream.state is State.LISTENING:
            # The program does not accept: its queue is full, and further connections wait in the backend's.
            child.link.loop.later(RETRY_S, lambda: self._knock(child))
            return
        if error:
            child.release()
            return
        child.connected()
        self.wait()
