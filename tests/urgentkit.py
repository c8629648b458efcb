"""What a program sees of urgent data, step by step: told of the kernel's sockets and of ours, to be compared."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

OOB, PEEK, DONTWAIT = socket.MSG_OOB, socket.MSG_PEEK, socket.MSG_DONTWAIT
PATIENCE_S = 10.0
_SIOCATMARK = 0x8905  # linux/sockios.h
_NAMES = {select.POLLIN: "IN", select.POLLPRI: "PRI", select.POLLRDHUP: "RDHUP"}


class End(Protocol):
    """One end of a connection."""

    def send(self, data: bytes, flags: int = 0) -> int: ...
    def recv(self, size: int, flags: int = 0) -> bytes: ...
    def at_mark(self) -> bool: ...
    def ready(self, events: int, seconds: float) -> int: ...
    def read_inline(self, on: bool) -> None: ...
    def close(self) -> None: ...


class PythonEnd:
    """An end that is a Python socket, the kernel's or one of xensock.socket."""

    def __init__(self, sock: Any) -> None:
        sock.settimeout(None)  # else Python waits until there are bytes, which an urgent one is not
        sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(PATIENCE_S), 0)
        )
        self.sock = sock
        self.send, self.recv, self.close = sock.send, sock.recv, sock.close

    def at_mark(self) -> bool:
        (found,) = struct.unpack("i", fcntl.ioctl(self.sock, _SIOCATMARK, bytes(4)))
        return bool(found)

    def ready(self, events: int, seconds: float) -> int:
        poll = select.poll()
        poll.register(self.sock, events)
        return sum(found for _, found in poll.poll(seconds * 1000))

    def read_inline(self, on: bool) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, int(on))


class Watched:
    """An end and what was seen at it, in order."""

    def __init__(self, end: End) -> None:
        self.end = end
        self.seen: list[object] = []

    def say(self, *what: object) -> None:
        self.seen.append(what)

    def wait(self, events: int) -> None:
        """Until it is so."""
        assert self.end.ready(events, PATIENCE_S) & events, f"no event of {events}"

    def urgent(self, flags: int = 0) -> object:
        """What MSG_OOB gives, or the name of the error."""
        try:
            return self.end.recv(8, OOB | DONTWAIT | flags)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def read(self, size: int) -> bytes:
        """So many bytes, however they come; less at the end."""
        got = b""
        while len(got) < size and (part := self.end.recv(size - len(got))):
            got += part
        return got

    def to_mark(self) -> bytes:
        """What is there before the mark, which a read does not pass."""
        self.wait(select.POLLPRI)
        got = b""
        while not self.end.at_mark():
            got += self.end.recv(1 << 16)
        return got

    def until_urgent(self, byte: bytes) -> None:
        """Until this is the urgent byte, in whatever place."""
        deadline = time.monotonic() + PATIENCE_S
        while self.urgent(PEEK) != byte:
            assert time.monotonic() < deadline, f"{byte!r} does not come"
            self.end.ready(select.POLLRDHUP, 0.002)

    def events(self) -> list[str]:
        found = self.end.ready(select.POLLIN | select.POLLPRI | select.POLLRDHUP, 0)
        return [name for bit, name in _NAMES.items() if found & bit]


def plain(near: Watched, far: End) -> None:
    """The byte is read beside the others."""
    near.say(near.urgent(), near.events(), near.end.at_mark())
    far.send(b"ab")
    far.send(b"!", OOB)
    near.say(near.to_mark(), near.end.at_mark())
    near.say(near.urgent(), near.urgent(), near.end.at_mark())
    far.send(b"cd")
    near.say(near.read(2), near.end.at_mark(), near.urgent(), near.events())


def standing_at_it(near: Watched, far: End) -> None:
    """An urgent byte is none that can be read."""
    far.send(b"ab!", OOB)
    near.say(near.to_mark(), near.events(), near.urgent(), near.events())
    far.send(b"cd")
    near.wait(select.POLLIN)
    near.say(near.read(2))


def last_of_several(near: Watched, far: End) -> None:
    """Of what is sent with MSG_OOB only the last byte is urgent."""
    near.say(far.send(b"abc!", OOB))
    near.say(near.to_mark(), near.urgent())


def skipped(near: Watched, far: End) -> None:
    """A byte that was not read is gone once reading has passed the mark."""
    far.send(b"ab!", OOB)
    far.send(b"cd")
    near.say(near.to_mark(), near.read(2), near.urgent(), near.end.at_mark())


def before_the_mark_is_reached(near: Watched, far: End) -> None:
    far.send(b"ab!", OOB)
    near.wait(select.POLLPRI)
    near.say(near.urgent(PEEK), near.urgent(PEEK), near.urgent(), near.urgent(PEEK), near.events())
    far.send(b"cd")
    near.say(near.read(2), near.end.at_mark(), near.read(2), near.end.at_mark())


def inline(near: Watched, far: End) -> None:
    """With SO_OOBINLINE it is one of the others, and reading stops before it."""
    near.end.read_inline(True)
    far.send(b"ab!", OOB)
    far.send(b"cd")
    near.say(near.to_mark(), near.end.at_mark(), near.urgent(), near.events())
    near.say(near.read(3), near.end.at_mark(), near.events())


def inline_for_a_while(near: Watched, far: End) -> None:
    near.end.read_inline(True)
    far.send(b"ab!", OOB)
    near.wait(select.POLLPRI)
    near.say(near.urgent())
    near.end.read_inline(False)
    near.say(near.urgent(), near.read(2), near.end.at_mark())


def two_in_a_row(near: Watched, far: End) -> None:
    """The later one is the urgent one, and the earlier one of the others."""
    far.send(b"a!", OOB)
    near.until_urgent(b"!")
    far.send(b"?", OOB)
    near.until_urgent(b"?")
    far.send(b"b")
    near.say(near.to_mark(), near.urgent(), near.read(1))


def two_that_are_read(near: Watched, far: End) -> None:
    far.send(b"a!", OOB)
    near.until_urgent(b"!")
    near.say(near.urgent())
    far.send(b"b?", OOB)
    near.until_urgent(b"?")
    near.say(near.urgent(), near.urgent())


def waiting_for_all(near: Watched, far: End) -> None:
    """MSG_WAITALL ends at the mark."""
    far.send(b"ab!", OOB)
    far.send(b"cd")
    near.wait(select.POLLPRI)
    near.say(near.end.recv(4, socket.MSG_WAITALL), near.end.recv(2, socket.MSG_WAITALL))


def the_end_behind_it(near: Watched, far: End) -> None:
    far.send(b"ab!", OOB)
    near.until_urgent(b"!")
    far.close()
    near.wait(select.POLLRDHUP)
    near.say(near.to_mark(), near.urgent(), near.read(1), near.urgent())


def closed_at_once(near: Watched, far: End) -> None:
    """What was sent before close(2) arrives, and is marked."""
    far.send(bytes(20000))
    far.send(b"ab!", OOB)
    far.send(b"cd")
    far.close()
    near.say(len(near.to_mark()), near.urgent(), near.read(3))


def much(near: Watched, far: End) -> None:
    """Marks are where they were set, also where rings wrap."""
    for turn in range(40):
        size = 5000 + 97 * turn
        far.send(b"." * size)
        far.send(b"%d" % (turn % 10), OOB)
        far.send(b";")
        near.say(len(near.to_mark()) == size, near.urgent(), near.read(1))


PROBES: list[Callable[[Watched, End], None]] = [
    plain,
    standing_at_it,
    last_of_several,
    skipped,
    before_the_mark_is_reached,
    inline,
    inline_for_a_while,
    two_in_a_row,
    two_that_are_read,
    waiting_for_all,
    the_end_behind_it,
    closed_at_once,
    much,
]


def seen(probe: Callable[[Watched, End], None], near: End, far: End) -> list[object]:
    """What the probe sees; both ends are closed then."""
    watched = Watched(near)
    try:
        probe(watched, far)
    finally:
        near.close()
        with contextlib.suppress(OSError):  # the probe has closed it
            far.close()
    return watched.seen


def natively(probe: Callable[[Watched, End], None]) -> list[object]:
    """The same of the kernel's TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        return seen(probe, PythonEnd(server.accept()[0]), PythonEnd(far))
