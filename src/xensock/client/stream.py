"""A stream socket: connect, and the ring that its bytes go through."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

from xensock.client.address import failure
from xensock.client.held import Held, State, answer_of, outcome
from xensock.client.link import Link, unwatch
from xensock.loop import IN
from xensock.wire.commands import Connect, ConnectFlag, Shutdown
from xensock.wire.errors import from_wire
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.client.listener import Door
    from xensock.pvcalls.datapages import DataPages
    from xensock.wire.commands import How
    from xensock.wire.responses import Response

_IN_ERROR, _STATUS = struct.Struct("<8xi"), struct.Struct("<88xI")
_IN = struct.Struct("<II")  # in_cons, in_prod
_OUT = struct.Struct("<64xIIi")  # out_cons, out_prod, out_error
_LOOK_S, _LOOK_MOST_S = 0.002, 0.25
_CONNECTED = 1
if TYPE_CHECKING:
    Ended = Callable[[int, int, int], None]


class Stream(Held):
    """A TCP socket at the backend."""

    def __init__(
        self,
        link: Link,
        family: int,
        end: socket.socket,
        protocol: int = 0,
        accepted: int = 0,
        hops: int = 0,
    ) -> None:
        super().__init__(link, family, socket.SOCK_STREAM, protocol, end, accepted, hops)
        self.door: Door | None = None  # of a listening one
        self.filling = 0  # bytes that make the program's end look full
        self.shut_down = False  # the program called shutdown(2)
        self.spliced: Ended | None = None  # bytes go to a socket that is not the program's end
        self.settled = threading.Event()  # no connect is under way
        self.settled.set()

    def connect(self, sockaddr: bytes) -> int:
        """Begin connect(2): 0, EINPROGRESS, or why not. `settled` is set at its end, which `error` then tells."""
        with self._lock:
            if self.state is State.CONNECTING:
                return errno.EALREADY
            if self.state is not State.NEW:
                return errno.EISCONN
            if self.error:
                return self.take_error()
            pages = self.link.frontend.data_ring(self.link.order)
            self._pages, self.state = pages, State.CONNECTING
            self.settled.clear()
        later = self.link.has(Extension.ASYNC_CONNECT)
        flags = ConnectFlag.ASYNC if later else ConnectFlag(0)
        self.peer = sockaddr
        try:
            future = self.submit(Connect(self.id, sockaddr, flags, pages.ref, pages.port))
            if not later:
                future.add_done_callback(lambda done: self._connect_ended(outcome(done)))
                return errno.EINPROGRESS
            response = answer_of(future)
        except OSError as error:
            self._failed(error.errno or errno.EIO)
            return self.take_error()
        if response.ret != -errno.EINPROGRESS:
            self._connect_ended(response)
            return self.take_error()
        self.own = response.address
        self.link.loop.add(pages.event.wait_fd, IN, lambda _: self._look(pages))
        self.link.loop.later(0, lambda: self._look(pages))  # it may be up already
        return errno.EINPROGRESS

    def _look(self, pages: DataPages) -> None:
        """On the loop's thread: whether the connection is up, or failed."""
        if self.state is not State.CONNECTING:
            return
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(pages.event.wait_fd)
        (error,) = _IN_ERROR.unpack_from(pages.indexes)
        (status,) = _STATUS.unpack_from(pages.indexes)
        if status != _CONNECTED and not error:
            return
        self.link.loop.remove(pages.event.wait_fd)
        # An end that came together with the connection is the mover's to tell.
        if status == _CONNECTED:
            self.connected()
        else:
            self._failed(from_wire(error))

    def _connect_ended(self, response: Response | int) -> None:
        if isinstance(response, int):
            self._failed(response)
        elif response.ret < 0:
            self._failed(from_wire(response.ret))
        else:
            self.own = response.address
            self.connected()

    def connected(self) -> None:
        """Let bytes flow, or wait for splice() to say where to."""
        with self._lock:
            if self.state is State.ENDED:
                return
            pages = self._pages
            if pages is None:
                raise ValueError("a connection without a ring")
            self.state = State.CONNECTED  # first: what can be written to is connected
            self._drain()
            if not self.link.splices:
                unwatch(self.link.loop, self.end)
                self._token = self.link.move(self, self.end, pages)
        self.settled.set()

    def splice(self, sock: socket.socket, ended: Ended) -> None:
        """Let bytes flow between the ring and `sock`, which is taken, instead of the program's end. For links with
        `splices`, where they do not flow yet. `ended(sent, received, errno)` is called once, on the loop's thread.
        Raises OSError (ENOTCONN)."""
        with self._lock:
            if self.state is not State.CONNECTED or self._pages is None or self._token:
                raise failure(errno.ENOTCONN)
            unwatch(self.link.loop, self.end)
            self.end.close()
            self.spliced = ended
            self._token = self.link.move(self, sock, self._pages)

    def reset_by_program(self) -> None:
        """See Moved."""
        if self.spliced is not None:
            self.resets = True

    def moved(self, sent: int, received: int, error: int) -> None:
        """See Moved."""
        with self._lock:
            if self._pages is not None and self.spliced is None and not error:
                consumed, produced = _IN.unpack_from(self._pages.indexes)
                # Closed with bytes that nobody has read: TCP resets then (RFC 1122, 4.2.2.13).
                self.resets = self.resets or consumed != produced
        super().moved(sent, received, error)
        if self.spliced is not None:
            self.spliced(sent, received, error)

    def adopt(self, pages: DataPages) -> None:
        """It is an accepted connection, and this is its ring."""
        self._pages, self.state = pages, State.CONNECTED

    def _failed(self, number: int) -> None:
        with self._lock:
            if self.state is not State.CONNECTING:
                return  # released: its ring went with it
            pages, self._pages = self._pages, None
            self.state, self.error, self.peer = State.NEW, number, b""
            self._drain()
        if pages is not None:
            pages.free()
        self.settled.set()

    def _drain(self) -> None:
        """Take what made the program's end look full, so that it is writable."""
        with contextlib.suppress(BlockingIOError):
            # Not more: the program may send as soon as there is room.
            while self.filling and (part := self.end.recv(self.filling)):
                self.filling -= len(part)

    def end_of_stream(self) -> None:
        """See Moved."""
        if self.resets and not self.shut_down:
            return  # it is the close, which is a reset
        if self.link.has(Extension.SHUTDOWN):
            if self.state is State.CONNECTED:
                with contextlib.suppress(OSError):
                    self.submit(Shutdown(self.id, socket.SHUT_WR))
        elif self.spliced is not None:
            self._end_whole(_LOOK_S)

    def _end_whole(self, delay: float) -> None:
        """On the loop's thread: version 1 cannot say that one direction has ended, and the peer waits for that end. So
        the connection ends, once the backend has taken what was sent: releasing it earlier would lose that. Whoever
        ended one direction alone, and waits for an answer, meets a reset, not an end that looks like the peer's."""
        with self._lock:
            if self._pages is None or self.state is not State.CONNECTED:
                return
            consumed, produced, error = _OUT.unpack_from(self._pages.indexes)
        if consumed == produced or error:
            self.link.cut(self._token)
            return
        self.link.loop.later(delay, lambda: self._end_whole(min(2 * delay, _LOOK_MOST_S)))

    def shut(self, how: How) -> None:
        """Tell the backend of a shutdown(2) that bytes do not show. Raises OSError."""
        if self.link.has(Extension.SHUTDOWN):
            self.command(Shutdown(self.id, how))

    def was_reset(self) -> bool:
        """See Held."""
        with self._lock:
            if self._pages is None or self.state is not State.CONNECTED:
                return False
            return _IN_ERROR.unpack_from(self._pages.indexes)[0] not in (0, -errno.ENOTCONN)

    def why_ended(self) -> int:
        """See Held. The program may meet the end before we have heard of it."""
        with self._lock:
            number = super().why_ended()
            if not number and not self.told and self.was_reset() and self._pages is not None:
                number = from_wire(_IN_ERROR.unpack_from(self._pages.indexes)[0])
            self.told = self.told or bool(number)
            return number

    def lost(self) -> None:
        """See Held."""
        super().lost()
        self.settled.set()
        if self.door is not None:
            self.door.knock()

    def held_elsewhere(self) -> bool:
        """See Held."""
        return self.door.held() if self.door is not None else super().held_elsewhere()

    def release(self, wait: bool = False) -> None:
        """See Held."""
        if self.door is not None:
            self.door.close()
        super().release(wait)
        self.settled.set()
