"""Stateful property tests: the same random calls with the kernel's sockets and with others.

    TestStreams = stream_machine(socket.socket, xensock.socket).TestCase

A machine remembers what is on its way, so that it waits for what must come and for nothing else. Results, data, errno
and readiness must be the same. Needs the package `hypothesis`.
"""

from __future__ import annotations

import socket as standard
import struct
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from xensock.testing.mirror import Both, at_once, bound, connected, same_readiness

if TYPE_CHECKING:
    from collections.abc import Callable

    Make = Callable[..., Any]

MOST = 32 << 10  # bytes on their way in one direction: nothing ever is full
LONGEST = 8 << 10
ENDS = st.integers(0, 1)
SIZES = st.integers(1, LONGEST)
NO_TIME = struct.pack("ii", 1, 0)
OPTIONS = (
    (standard.SOL_SOCKET, standard.SO_KEEPALIVE),
    (standard.SOL_SOCKET, standard.SO_REUSEADDR),
    (standard.SOL_SOCKET, standard.SO_TYPE),
    (standard.SOL_SOCKET, standard.SO_ERROR),
    (standard.SOL_SOCKET, standard.SO_ACCEPTCONN),
    (standard.IPPROTO_TCP, standard.TCP_NODELAY),
    (standard.IPPROTO_TCP, standard.TCP_KEEPIDLE),
    (standard.IPPROTO_TCP, 4711),
)
RECEIVING = {
    "recv": lambda sock, n: sock.recv(n),
    "recv_into": lambda sock, n: _into(sock, n),
    "recvmsg": lambda sock, n: sock.recvmsg(n)[0],
    "recvfrom": lambda sock, n: sock.recvfrom(n)[0],
}
SENDING = {
    "send": lambda sock, data: sock.send(data),
    "sendall": lambda sock, data: sock.sendall(data),
    "sendmsg": lambda sock, data: sock.sendmsg([data[:3], data[3:]]),
}
MISPLACED = {  # calls that a connected socket does not take
    "connect": lambda sock: sock.connect(("127.0.0.1", 1)),
    "listen": lambda sock: sock.listen(),
    "accept": lambda sock: at_once(sock, lambda s: s.accept()),
    "bind": lambda sock: sock.bind(("127.0.0.1", 0)),
    "shutdown 7": lambda sock: sock.shutdown(7),
}
FRESH = {  # calls at a socket that is not connected
    "recv": lambda sock: sock.recv(1),
    "send": lambda sock: sock.send(b"x"),
    "getpeername": lambda sock: sock.getpeername(),
    "getsockname": lambda sock: sock.getsockname(),
    "accept": lambda sock: at_once(sock, lambda s: s.accept()),
    "shutdown": lambda sock: sock.shutdown(standard.SHUT_RDWR),
    "bind elsewhere": lambda sock: sock.bind(("198.51.100.1", 0)),
    "connect to nobody": lambda sock: sock.connect(("127.0.0.1", 1)),
    "error": lambda sock: sock.getsockopt(standard.SOL_SOCKET, standard.SO_ERROR),
}


def _into(sock: Any, size: int) -> bytes:
    buffer = bytearray(size)
    got = sock.recv_into(buffer)
    return bytes(buffer[:got])


def _all(sock: Any, size: int, way: str) -> bytes:
    """So many bytes, in pieces as they come, or what there is before the end."""
    got = b""
    while len(got) < size and (part := RECEIVING[way](sock, size - len(got))):  # type: ignore[no-untyped-call]
        got += part
    return got


def stream_machine(kernel: Make, other: Make) -> type[RuleBasedStateMachine]:
    """A machine for connected streams. `kernel` and `other` make sockets, as `socket.socket` does."""

    class Streams(RuleBasedStateMachine):
        @initialize()
        def connect(self) -> None:
            """Two connections."""
            there, here = connected(kernel), connected(other)
            self.ends = [Both(there[end], here[end]) for end in (0, 1)]
            self.waiting = [bytearray(), bytearray()]  # what end 0, end 1 can receive
            self.finished = [False, False]  # sends no more
            self.closed = [False, False]
            self.reset = False
            self.sent = 0

        def usable(self, end: int) -> bool:
            """Whether calls at this end have an outcome that depends on nothing else."""
            return not self.closed[end] and not self.reset

        @rule(end=ENDS, size=SIZES, way=st.sampled_from(sorted(SENDING)))
        def send(self, end: int, size: int, way: str) -> None:
            """Some bytes, where there is room, or EPIPE."""
            if not self.usable(end) or self.closed[1 - end]:
                return
            size = min(size, MOST - len(self.waiting[1 - end]))
            data = bytes((self.sent + n) & 0xFF for n in range(size))
            if not data:
                return
            self.ends[end].each(lambda sock: SENDING[way](sock, data))
            if not self.finished[end]:
                self.waiting[1 - end] += data
                self.sent += size

        @rule(end=ENDS, size=SIZES, way=st.sampled_from(sorted(RECEIVING)))
        def receive(self, end: int, size: int, way: str) -> None:
            """What waits, the end of the stream, or nothing."""
            if not self.usable(end):
                return
            waiting, over = self.waiting[end], self.finished[1 - end]
            if not waiting and not over:
                self.ends[end].each(lambda sock: at_once(sock, lambda s: s.recv(size)))
                return
            size = min(size, len(waiting)) or size
            got = self.ends[end].each(lambda sock: _all(sock, size, way))
            assert got == bytes(waiting[:size])
            del waiting[:size]

        @rule(end=ENDS)
        def peek(self, end: int) -> None:
            """A look takes nothing."""
            if not self.usable(end) or not self.waiting[end]:
                return
            # One byte: how much of what was sent has arrived is a matter of time.
            got = self.ends[end].each(lambda sock: sock.recv(1, standard.MSG_PEEK))
            assert got == bytes(self.waiting[end][:1])

        @rule(end=ENDS)
        def finish(self, end: int) -> None:
            """shutdown(SHUT_WR)."""
            if not self.usable(end) or self.finished[end] or self.closed[1 - end]:
                return
            self.ends[end].each(lambda sock: sock.shutdown(standard.SHUT_WR))
            self.finished[end] = True

        @rule(end=ENDS)
        def look(self, end: int) -> None:
            """Readiness, once everything has arrived."""
            if self.usable(end):
                same_readiness(self.ends[end])

        @rule(end=ENDS, call=st.sampled_from(sorted(MISPLACED)))
        def misplaced(self, end: int, call: str) -> None:
            """Calls that are refused whatever was sent."""
            if self.usable(end) and not any(self.finished):
                self.ends[end].each(MISPLACED[call])

        @rule(end=ENDS, option=st.sampled_from(OPTIONS), value=st.integers(0, 1))
        def options(self, end: int, option: tuple[int, int], value: int) -> None:
            """Options, also such as there are not."""
            if not self.usable(end) or any(self.finished):
                return
            self.ends[end].each(lambda sock: sock.setsockopt(*option, value))
            self.ends[end].each(lambda sock: sock.getsockopt(*option))

        @rule(end=ENDS)
        def names(self, end: int) -> None:
            """Whose names are told, and that both ends agree."""
            if not self.usable(end) or any(self.finished) or any(self.closed):
                return
            mine, theirs = self.ends[end], self.ends[1 - end]
            for own, far in ((mine.kernel, theirs.kernel), (mine.other, theirs.other)):
                assert own.getsockname() == far.getpeername()

        @precondition(lambda self: not self.reset)
        @rule(end=ENDS, at_once=st.booleans())
        def close(self, end: int, at_once: bool) -> None:
            """Close; with bytes that nobody has read, or without time, it is a reset."""
            if self.closed[end] or self.closed[1 - end]:
                return
            # Behind the end of a stream the kernel tells no reset to a reader.
            at_once = at_once and not any(self.finished)
            if self.waiting[end] and any(self.finished):
                return
            if self.waiting[end]:
                same_readiness(self.ends[end])  # unread is what has arrived
            if at_once:
                self.ends[end].each(
                    lambda sock: sock.setsockopt(standard.SOL_SOCKET, standard.SO_LINGER, NO_TIME)
                )
            self.reset = at_once or bool(self.waiting[end])
            self.ends[end].each(lambda sock: sock.close())
            self.closed[end] = self.finished[end] = True
            if not self.reset:
                return
            # What a reset leaves of the bytes on their way is a matter of time: only how it ends is not.
            self.ends[1 - end].each(_rest)
            self.closed[1 - end] = True
            self.ends[1 - end].each(lambda sock: sock.close())

        @rule(call=st.sampled_from(sorted(FRESH)))
        def fresh(self, call: str) -> None:
            """A socket that is not connected."""
            there, here = (make(standard.AF_INET, standard.SOCK_STREAM) for make in (kernel, other))
            with there, here:
                Both(there, here).each(FRESH[call])

        def teardown(self) -> None:
            """Close what is open."""
            for both in getattr(self, "ends", []):
                both.kernel.close()
                both.other.close()

    return Streams


def _rest(sock: Any) -> str:
    """Receive until the stream has ended in order. Raises OSError where it did not."""
    while sock.recv(LONGEST):
        pass
    return "the end"


def datagram_machine(kernel: Make, other: Make) -> type[RuleBasedStateMachine]:
    """A machine for UDP. `kernel` and `other` make sockets, as `socket.socket` does."""

    class Datagrams(RuleBasedStateMachine):
        @initialize()
        def bind(self) -> None:
            """Two bound sockets each."""
            there, here = bound(kernel), bound(other)
            self.ends = [Both(there[end], here[end]) for end in (0, 1)]
            self.waiting: list[list[bytes]] = [[], []]
            self.connected = [False, False]
            self.sent = 0

        @rule(end=ENDS, size=st.integers(0, LONGEST), named=st.booleans())
        def send(self, end: int, size: int, named: bool) -> None:
            """A datagram, with the other's address or without."""
            if len(self.waiting[1 - end]) >= 16:
                return
            data = bytes((self.sent + n) & 0xFF for n in range(size))
            far = self.ends[1 - end]
            where = {id(self.ends[end].kernel): far.kernel, id(self.ends[end].other): far.other}

            def call(sock: Any) -> Any:
                if not named:
                    return sock.send(data)
                return sock.sendto(data, where[id(sock)].getsockname())

            if self.ends[end].each(call) == size:
                self.waiting[1 - end].append(data)
                self.sent += 1

        @rule(end=ENDS, size=st.integers(1, LONGEST), look=st.booleans())
        def receive(self, end: int, size: int, look: bool) -> None:
            """The next datagram, cut where there is no room, or none."""
            flags = standard.MSG_PEEK if look else 0
            if not self.waiting[end]:
                self.ends[end].each(lambda sock: at_once(sock, lambda s: s.recv(size)))
                return

            def call(sock: Any) -> tuple[bytes, int]:
                data, _, seen, _ = sock.recvmsg(size, 0, flags)
                return data, seen & standard.MSG_TRUNC

            got, _ = self.ends[end].each(call)
            assert got == self.waiting[end][0][:size]
            if not look:
                del self.waiting[end][0]

        @rule(end=ENDS)
        def connect(self, end: int) -> None:
            """Choose the other one as peer."""
            far = self.ends[1 - end]
            self.ends[end].kernel.connect(far.kernel.getsockname())
            self.ends[end].other.connect(far.other.getsockname())
            self.connected[end] = True

        @rule(end=ENDS)
        def names(self, end: int) -> None:
            """Who the peer is."""
            far = self.ends[1 - end]
            for sock, peer in (
                (self.ends[end].kernel, far.kernel),
                (self.ends[end].other, far.other),
            ):
                if self.connected[end]:
                    assert sock.getpeername() == peer.getsockname()
            self.ends[end].each(lambda sock: sock.getpeername()[0])

        @rule(end=ENDS)
        def look(self, end: int) -> None:
            """Readiness."""
            same_readiness(self.ends[end])

        def teardown(self) -> None:
            """Close them."""
            for both in getattr(self, "ends", []):
                both.kernel.close()
                both.other.close()

    return Datagrams
