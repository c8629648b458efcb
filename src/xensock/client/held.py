"""What every own socket has besides the descriptor that the program holds: commands, names, options, an end."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from enum import Enum, auto
from typing import TYPE_CHECKING

from xensock.client.address import failure
from xensock.client.link import COMMAND_S, Link, unwatch, watch_hang_up
from xensock.wire.commands import (
    OPTION,
    PAGE,
    Bind,
    Close,
    CloseFlag,
    GetName,
    GetOption,
    Release,
    SetOption,
    Socket,
    Which,
)
from xensock.wire.errors import from_wire
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from concurrent.futures import Future

    from xensock.pvcalls.datapages import DataPages
    from xensock.wire.commands import Request
    from xensock.wire.responses import Response


RESET_S = 0.2  # a duplicate of the descriptor elsewhere keeps it open: that is not waited for
_INT, _LINGER = struct.Struct("@i"), struct.Struct("@ii")


class State(Enum):
    """Of a socket, as TCP's (tcp(7))."""

    NEW = auto()
    CONNECTING = auto()
    CONNECTED = auto()
    LISTENING = auto()
    ENDED = auto()


class Held:
    """A socket at the backend. Methods may be called from any thread.

    `end` is our end of the program's socket pair, until the mover has it.
    """

    def __init__(
        self,
        link: Link,
        family: int,
        type: int,
        protocol: int,
        end: socket.socket,
        accepted: int = 0,
        hops: int = 0,
    ) -> None:
        """Make the socket at the backend, unless `accepted` is the id of one that it made. `hops`: how many backends
        pass its calls on. Raises OSError."""
        self.link = link
        self.family = self.shown = family  # of the socket, and what the program calls it
        self.type = type
        self.protocol = protocol
        self.end = end
        self.state = State.NEW
        self.error = 0  # pending, for SO_ERROR
        self.told = False  # the program has met the error that ended it
        self.own = self.peer = b""
        self.bound = False
        self.inline = False  # SO_OOBINLINE, where urgent bytes are ours to read
        self.resets = False  # its close is a reset (socket(7), SO_LINGER with no time)
        self.holders = 0  # Python objects of this process
        self.inode = (0, 0)
        self.knocked = b""
        self.sizes = (0, 0)  # SO_SNDBUF, SO_RCVBUF that the program asked for; 0: none
        self.released = threading.Event()  # the backend has closed it
        self._lock = threading.RLock()
        self._pages: DataPages | None = None
        self._token = 0
        end.setblocking(False)
        self.id = accepted or link.frontend.new_id()
        if not accepted:
            # v1 knows the protocol by the type alone.
            tcp = type == socket.SOCK_STREAM
            hops = hops if link.has(Extension.HOPS) else 0
            request = Socket(self.id, family, type, 0 if tcp else protocol, hops)
            link.departures.wait_for_room(lambda: self.command(request), link.loop)
            watch_hang_up(link.loop, end, self.release)

    # --- commands

    def submit(self, request: Request) -> Future[Response]:
        """Send a command. Raises OSError (EOPNOTSUPP) in a forked child: the threads that serve the socket stayed in
        the parent, so that its bytes still flow but nothing else can be asked."""
        if self.link.pid != os.getpid():
            raise failure(errno.EOPNOTSUPP)
        return self.link.frontend.submit(request)

    def command(self, request: Request) -> Response:
        """Send a command and wait for its answer. Raises OSError."""
        response = answer_of(self.submit(request))
        if response.ret < 0:
            raise failure(from_wire(response.ret))
        return response

    def bind(self, sockaddr: bytes) -> None:
        """bind(2). Raises OSError."""
        self.bound = True
        self.own = self.command(Bind(self.id, sockaddr)).address or sockaddr

    def name(self, which: Which) -> bytes:
        """getsockname(2), getpeername(2): a struct sockaddr, empty for the wildcard. Raises OSError (ENOTCONN)."""
        if which == Which.PEER:
            if self.state is not State.CONNECTED or self.was_reset():
                raise failure(errno.ENOTCONN)
            return self.peer
        if not self.own and self.link.has(Extension.NAMES):
            self.own = self.command(GetName(self.id, Which.OWN)).address
        return self.own

    def set_option(self, level: int, name: int, value: bytes) -> None:
        """setsockopt(2). Raises OSError: ENOPROTOOPT for what is not carried."""
        if not self.link.has(Extension.OPTIONS) or len(value) > OPTION:
            raise failure(errno.ENOPROTOOPT)
        self.command(SetOption(self.id, level, name, value))
        if level == socket.SOL_SOCKET and len(value) >= _INT.size:
            if name == socket.SO_SNDBUF:
                self.buffers(_INT.unpack_from(value)[0], 0)
            elif name == socket.SO_RCVBUF:
                self.buffers(0, _INT.unpack_from(value)[0])
        if (level, name) == (socket.SOL_SOCKET, socket.SO_LINGER) and len(value) >= _LINGER.size:
            on, seconds = _LINGER.unpack_from(value)
            self.resets = bool(on) and not seconds

    def buffers(self, send: int, receive: int) -> None:
        """Sizes for the socket pair's buffers, too, which are added to those at the backend. `send` is that of the
        program's end, which its holder sets; `receive` counts before bytes flow."""
        self.sizes = send or self.sizes[0], receive or self.sizes[1]
        if receive and not self._token and self.end.fileno() >= 0:
            self.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, receive)

    @property
    def reads_urgent(self) -> bool:
        """Whether urgent bytes are marked in its ring, and come to the program's end as such."""
        return self.type == socket.SOCK_STREAM and self.link.has(Extension.URGENT)

    def get_option(self, level: int, name: int, length: int) -> bytes:
        """getsockopt(2). Raises OSError: ENOPROTOOPT for what is not carried."""
        if not self.link.has(Extension.OPTIONS):
            raise failure(errno.ENOPROTOOPT)
        if length <= OPTION:
            return self.command(GetOption(self.id, level, name, length)).value
        pages = self.link.frontend.session.allocate(1)
        try:
            asked = GetOption(self.id, level, name, min(length, PAGE), pages.refs[0])
            return bytes(pages.memory[: self.command(asked).length])
        finally:
            pages.free()

    def take_error(self) -> int:
        """SO_ERROR: what is pending, once."""
        with self._lock:
            number, self.error = self.error, 0
            return number

    def why_ended(self) -> int:
        """The errno that ended it, once; 0 where it ended in order."""
        return self.take_error()

    def was_reset(self) -> bool:
        """Whether a connection was there that is not any more."""
        return False

    # --- the end

    def end_of_stream(self) -> None:
        """The program sends no more; what it sent is in the ring."""

    def reset_by_program(self) -> None:
        """See Moved."""

    def moved(self, sent: int, received: int, error: int) -> None:
        """The mover is done with it: nobody holds the program's end, or the connection was reset."""
        if not self.told:
            self.error = self.error or error
        if error == errno.ECONNRESET:
            self.resets = True  # it was closed with bytes that nobody read; or reset already
        self.release()

    def lost(self) -> None:
        """There is no backend any more: calls fail, and the program's end hangs up."""
        with self._lock:
            if self.state is State.ENDED:
                return
            token = self._token
            self.error = self.error or (errno.ECONNRESET if token else errno.ENETDOWN)
        if token:
            self.link.cut(token)
        else:
            self.release()

    def hand_over_end(self) -> None:
        """The program's end of the socket pair is about to be replaced: its hang-up means nothing."""
        unwatch(self.link.loop, self.end)

    def closed(self) -> None:
        """The last Python object is closed. What is connected ends when nobody holds the descriptor; the rest ends now,
        so that its port is free when close(2) returns, as natively."""
        if self.state is State.ENDED:
            self.link.forget(self)
        if self.link.pid != os.getpid():
            return
        about_to_move = self.state is State.CONNECTED and not self.link.splices
        if self._token or about_to_move:
            if self.resets or (self.bound and self.type == socket.SOCK_DGRAM):
                # Natively, too, the peer knows, and the port is free, when close(2) returns.
                self.released.wait(RESET_S)
            return
        if not self.held_elsewhere():
            self.release(wait=True)

    def left(self) -> bool:
        """Whether nobody holds the program's end any more, and nobody has heard of it; the mover knows of its own."""
        if self._token or self.state in (State.LISTENING, State.ENDED) or self.end.fileno() < 0:
            return False
        return not self._end_is_held()

    def held_elsewhere(self) -> bool:
        """Whether another process, or a detached descriptor, still holds the program's end."""
        return self._end_is_held()

    def _end_is_held(self) -> bool:
        poll = select.poll()
        try:
            poll.register(self.end, 0)
        except ValueError:
            return False  # released meanwhile
        return not poll.poll(0)

    def release(self, wait: bool = False) -> None:
        """Close it at the backend, which delivers what is on its way. Calling it again is fine.

        `wait` for its answer: then its port is free, as natively when close(2) returns.
        """
        with self.link.departures.one():
            done = self._release(wait)
        if done is not None and wait:
            outcome(done)

    def _release(self, wait: bool) -> Future[Response] | None:
        """The command that closes it, sent; None where it is closed already."""
        with self._lock:
            before, pages = self.state, None
            if before is not State.ENDED:
                self.state = State.ENDED
                pages, self._pages = self._pages, None
        if before is State.ENDED:
            if wait and not self.link.loop.is_current():
                self.released.wait(COMMAND_S)  # the loop's thread was first to hear of it
            return None
        if before is State.CONNECTING and pages is not None:
            self.link.loop.remove(pages.event.wait_fd)
        if not self._token:
            unwatch(self.link.loop, self.end)
            self.end.close()
        if not self.holders:
            self.link.forget(self)
        try:
            done = self.submit(self._closing())
        except OSError:
            if pages is not None:
                pages.free()  # the backend is gone
            self.released.set()
            return None
        if pages is not None:
            done.add_done_callback(lambda _: pages.free())
        done.add_done_callback(lambda _: self.released.set())
        return done

    def _closing(self) -> Request:
        if not self.link.has(Extension.CLOSE):
            return Release(self.id)
        return Close(self.id, CloseFlag.RESET if self.resets else 0)


def answer_of(future: Future[Response]) -> Response:
    """Raises OSError: ENETDOWN for a backend that does not answer."""
    try:
        return future.result(COMMAND_S)
    except FutureTimeout:
        raise failure(errno.ENETDOWN) from None


def outcome(future: Future[Response]) -> Response | int:
    """What a command came to: its response, or an errno where there is none."""
    with contextlib.suppress(CancelledError):
        try:
            return answer_of(future)
        except OSError as error:
            return error.errno or errno.EIO
    return errno.ECONNABORTED
