"""Datagrams of a guest's socket that a rule sends by another backend: by sockets there, beside the host's own one.

Theory of operation: the other backend decides about each destination by its own rules. It is asked by connecting a
socket that sends nothing, on a thread of its network's, as it may be slow to answer; then another socket sends, and
the event loop hears of what comes back. What ICMP said over there comes as it is.
"""

from __future__ import annotations

import errno
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from xensock.calls.address import AddressError, Endpoint
from xensock.calls.hops import MOST, circle
from xensock.pvcalls.serving.framing import TURN
from xensock.pvcalls.serving.held import in_family
from xensock.wire.errors import WireError
from xensock.wire.frames import Frame

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from xensock.calls.call import Decision
    from xensock.pvcalls.serving.beside import Seen
    from xensock.pvcalls.serving.framing import Frames
    from xensock.pvcalls.serving.held import Held
    from xensock.wire.packet_info import Control

QUOTED = (
    512  # bytes of a datagram that the report of its failure repeats at most (RFC 1812, 4.3.2.3)
)
# IP_RECVERR of ip(7) and IPV6_RECVERR of ipv6(7): whether what ICMP says is told.
REPORTS: dict[int, tuple[int, int]] = {
    socket.AF_INET: (socket.IPPROTO_IP, 11),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 25),
}


class Socket(Protocol):
    """A datagram socket of another backend (stack.upstream has them)."""

    def fileno(self) -> int:
        """A descriptor that is readable when something came."""
        ...

    def setblocking(self, flag: bool, /) -> None:
        """Whether its calls wait."""
        ...

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """setsockopt(2)."""
        ...

    def look(self, end: Endpoint, /) -> Seen:
        """What the other backend says of datagrams to there. It may be slow."""
        ...

    def sendmsg(
        self, buffers: list[bytes], ancdata: list[Control], flags: int, address: object, /
    ) -> int:
        """sendmsg(2)."""
        ...

    def frame(self, flags: int, /) -> Frame | None:
        """What came next; None once the backend is gone. Raises BlockingIOError, WireError."""
        ...

    def close(self) -> None:
        """Let go of it. It may be slow."""
        ...


class Passer(Protocol):
    """Another backend."""

    name: str

    @property
    def informed(self) -> bool:
        """Whether datagrams come and go with what IP says beside their payload."""
        ...

    def threads(self, hops: int, /) -> Executor:
        """As serving.passing.Passer has it."""
        ...

    def make_datagrams(self, family: int, protocol: int, hops: int, /) -> Socket:
        """A datagram socket of its network. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class Refused:
    """A destination to which nothing can be sent."""

    error: int
    decision: Decision | None = None
    own: Endpoint | None = None


class Afar:
    """The sockets of one of the guest's at another backend. Belongs to the event loop's thread, but for `look`.

    heard   whether one who sends may be heard
    """

    def __init__(
        self, held: Held, by: Passer, frames: Frames, heard: Callable[[Endpoint], bool]
    ) -> None:
        self._held, self._by, self._frames, self._heard = held, by, frames, heard
        self._hops = held.hops + 1
        self._threads = by.threads(min(self._hops, MOST))
        self._loop = held.guest.backend.loop
        self._lock = threading.Lock()  # of what is made and asked
        self._reports = bool(held.host.getsockopt(*REPORTS[held.family]))
        self._looker: Socket | None = None
        self._sock: Socket | None = None
        self._watched = -1
        self._closed = False

    def look(self, end: Endpoint) -> Seen:
        """What the other backend says of datagrams to an (unmapped) destination. On one of its threads."""
        if self._hops > MOST:
            refusal = circle(self._by.name)
            return Refused(refusal.error, refusal)
        with self._lock:
            if self._closed:
                return Refused(errno.ECANCELED)
            try:
                if self._looker is None:
                    self._looker = self._make()
                if self._sock is None:
                    self._sock = self._make()
                    self._sock.setblocking(False)
                    if self._reports:
                        self._sock.setsockopt(*REPORTS[self._held.family], 1)
                return self._looker.look(in_family(end, self._held.family))
            except OSError as error:
                return Refused(error.errno or errno.EIO)

    def _make(self) -> Socket:
        return self._by.make_datagrams(self._held.family, self._held.protocol, self._hops)

    def send(self, payload: bytes, to: Endpoint, control: list[Control]) -> int:
        """The errno of sendmsg(2), to a destination that was looked at. A backend that knows of no control messages
        sends as its sockets do."""
        if self._sock is None or self._closed:
            return errno.ENETUNREACH
        self._watch(self._sock)
        try:
            told = control if self._by.informed else []
            self._sock.sendmsg([payload], told, 0, to.as_python())
        except BlockingIOError:
            return 0  # lost, as on a wire
        except OSError as error:
            return error.errno or errno.EIO
        self._held.guest.counters.sent += len(payload)
        return 0

    def close(self) -> None:
        """Let go of them."""
        if self._closed:
            return
        self._closed = True
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
        with suppress(RuntimeError):  # the network is closed, and they with that
            self._threads.submit(self._drop)

    def _drop(self) -> None:
        """On a thread."""
        with self._lock:
            for each in (self._looker, self._sock):
                if each is not None:
                    each.close()

    def _watch(self, sock: Socket) -> None:
        if self._watched < 0:
            self._watched = sock.fileno()
            self._loop.add_reader(self._watched, self._receive)

    def _receive(self) -> None:
        assert self._sock is not None
        for _ in range(TURN):
            try:
                frame = self._sock.frame(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except (OSError, WireError):
                frame = None
            if frame is None:  # what is sent from now on finds nobody
                self.close()
                return
            if frame.error:
                self._tell(frame)
            elif self._is_heard(frame.address):
                self._give(frame)

    def _is_heard(self, address: bytes) -> bool:
        try:
            return self._heard(Endpoint.from_sockaddr(address))
        except AddressError:
            return False

    def _tell(self, frame: Frame) -> None:
        icmp = frame.icmp
        if icmp is not None:
            icmp = replace(icmp, quote=icmp.quote[:QUOTED])
        self._frames.put(Frame(b"", frame.address, error=frame.error, icmp=icmp))

    def _give(self, frame: Frame) -> None:
        if len(frame.payload) > self._frames.longest:
            cut = frame.payload[: self._frames.longest]
            frame = Frame(cut, frame.address, truncated=True, info=frame.info)
        if not self._frames.informed:
            frame = replace(frame, info=None)
        if self._frames.put(frame):
            self._held.guest.counters.received += len(frame.payload)
