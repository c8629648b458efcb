"""What the next backend needs to go on with the guests of one that was killed: a journal in memory.

Theory of operation
    The journal is a memfd. A record is written with one system call before what it says has an effect that others can
    see, so that a sudden end leaves either both or a record too many; whoever goes on can tell by the kernel's own
    state, by the rings, or by doing the step again. A record that was cut off by the end is none.

    Descriptors are named by their numbers: a process that shares the table of them outlives this one
    (`backend.keeper`).

Records, the session's number first where there is one
    session n fd pid uid            said n packet fds           gone n
    ring n taken answered last {sequence: request} refs port extensions
    unringed n                      names n fd
    taken n sequence requests       answered n sequence response
    held n id socket                dropped n id
    rest token fd cookie memory length begin reset              rested token
"""

from __future__ import annotations

import errno
import logging
import marshal
import math
import os
import struct
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from xensock.wire import local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Record: TypeAlias = tuple[Any, ...]

_HEAD = struct.Struct("<II")
LONGEST = 4 << 20  # bytes, from which on the journal is written anew
FORMAT = 4  # of marshal, which every later Python reads
PAUSE_S = 1.0  # after a journal could not be written
log = logging.getLogger("xensock.backend")


class Journal:
    """Takes records. `snapshot` says the whole state as records: with it the journal begins anew when it is long.
    `later` calls something once nobody is in the middle of a change."""

    def __init__(
        self,
        snapshot: Callable[[], Iterable[Record]],
        later: Callable[[Callable[[], None]], object],
        longest: int = LONGEST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fd = _memory()
        self._snapshot = snapshot
        self._later = later
        self._clock = clock
        self._longest = longest
        self._most = longest
        self._length = 0
        self._lost = False
        self._due = False
        self._not_before = -math.inf

    def note(self, *record: Any) -> None:
        """Write a record down."""
        if not self._lost:
            raw = _framed(record)
            try:
                if os.pwrite(self.fd, raw, self._length) != len(raw):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                self.lose(error)
            else:
                self._length += len(raw)
        if (self._lost or self._length > self._most) and not self._due:
            self._due = self._clock() >= self._not_before
            if self._due:
                self._later(self._renew)

    def lose(self, error: OSError) -> None:
        """Say nothing until all can be said anew."""
        os.ftruncate(self.fd, 0)
        self._lost = True
        why = error.strerror
        log.error(
            "no journal can be kept (%s): guests over rings end with this backend until it can", why
        )

    def _renew(self) -> None:
        try:
            self.rewrite()
        except OSError as error:
            self._not_before = self._clock() + PAUSE_S
            log.warning(
                "the journal of guests over rings cannot be written anew: %s", error.strerror
            )
        finally:
            self._due = False

    def rewrite(self) -> None:
        """Begin anew. The number of the descriptor stays; it is one journal or the other at any time. Raises OSError:
        then it is the one that it was."""
        fd = _memory()
        try:
            raw = b"".join(_framed(record) for record in self._snapshot())
            _write(fd, raw)
            os.dup2(fd, self.fd, inheritable=False)
        finally:
            os.close(fd)
        if self._lost:
            log.info("the journal of guests over rings is kept again")
        self._lost = False
        self._length = len(raw)
        self._most = max(self._longest, 2 * self._length)

    def close(self) -> None:
        """Forget everything."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _memory() -> int:
    return os.memfd_create("xensock-journal", os.MFD_CLOEXEC)


def _write(fd: int, raw: bytes) -> None:
    view = memoryview(raw)
    while view:
        view = view[os.write(fd, view) :]


def _framed(record: Record) -> bytes:
    raw = marshal.dumps(record, FORMAT)
    return _HEAD.pack(len(raw), zlib.crc32(raw)) + raw


def records(fd: int) -> Iterator[Record]:
    """The records of a journal, up to one that was cut off."""
    raw = os.pread(fd, os.fstat(fd).st_size, 0)
    at = 0
    while at + _HEAD.size <= len(raw):
        length, check = _HEAD.unpack_from(raw, at)
        body = raw[at + _HEAD.size : at + _HEAD.size + length]
        if not length or len(body) != length or zlib.crc32(body) != check:
            return
        yield marshal.loads(body)
        at += _HEAD.size + length


@dataclass(slots=True)
class KeptSession:
    """A session as the journal has it."""

    fd: int
    pid: int
    uid: int
    hello: bytes = b""
    nodes: dict[str, str] = field(default_factory=dict)
    granted: dict[tuple[type, int], tuple[bytes, list[int]]] = field(default_factory=dict)
    last: bytes = b""  # what it said last, which perhaps still waits to be received
    ring: tuple[int, int] | None = None  # requests taken, responses put
    terms: tuple[list[int], int, list[str]] | None = None  # the ring's pages, its port, extensions
    answer: bytes = b""  # the last response
    waiting: dict[int, bytes] = field(default_factory=dict)  # requests without a response
    held: dict[int, dict[str, Any]] = field(default_factory=dict)
    names: int = -1

    @property
    def said(self) -> list[tuple[bytes, list[int]]]:
        """Messages that lead to where it is, with the numbers of their descriptors."""
        found: list[tuple[bytes, list[int]]] = [(self.hello, [])] if self.hello else []
        found += [
            (local.encode(local.Write({key: value})), []) for key, value in self.nodes.items()
        ]
        return [*found, *self.granted.values()]


@dataclass(slots=True)
class KeptRest:
    """Bytes for a socket that its guest has released: `length` of them in `memory`, where the socket's count of all
    that it took was `begin`."""

    fd: int
    cookie: int
    memory: int
    length: int
    begin: int
    reset: bool


@dataclass(slots=True)
class Kept:
    """All that a journal says."""

    sessions: dict[int, KeptSession] = field(default_factory=dict)
    rests: dict[int, KeptRest] = field(default_factory=dict)

    def take(self, record: Record) -> None:
        """Follow one record."""
        what, number, *rest = record
        if what == "session":
            self.sessions[number] = KeptSession(*rest)
            return
        if what == "rest":
            self.rests[number] = KeptRest(*rest)
            return
        if what == "rested":
            self.rests.pop(number, None)
            return
        if what == "gone":
            self.sessions.pop(number, None)
            return
        session = self.sessions.get(number)
        if session is not None:
            _take(session, what, rest)

    def descriptors(self) -> set[int]:
        """The numbers of all descriptors that are named."""
        found = {fd for rest in self.rests.values() for fd in (rest.fd, rest.memory)}
        for session in self.sessions.values():
            found |= {session.fd, session.names}
            found.update(fd for _, fds in session.granted.values() for fd in fds)
            found.update(held["fd"] for held in session.held.values())
        return {fd for fd in found if fd >= 0}


def _take(session: KeptSession, what: str, rest: list[Any]) -> None:
    match what:
        case "said":
            _said(session, rest[0], rest[1])
        case "last":
            session.last = rest[0]
        case "ring":
            session.ring = rest[0], rest[1]
            session.answer, session.waiting = rest[2], dict(rest[3])
            session.terms = rest[4], rest[5], rest[6]
        case "unringed":
            session.ring = None
        case "taken" if session.ring is not None:
            taken, answered = session.ring
            session.ring = (taken + len(rest[1])) & 0xFFFFFFFF, answered
            session.waiting.update(enumerate(rest[1], rest[0]))
        case "answered" if session.ring is not None:
            taken, answered = session.ring
            session.ring = taken, (answered + 1) & 0xFFFFFFFF
            session.waiting.pop(rest[0], None)
            session.answer = rest[1]
        case "held":
            session.held[rest[0]] = rest[1]
        case "dropped":
            session.held.pop(rest[0], None)
        case "names":
            session.names = rest[0]


def _said(session: KeptSession, packet: bytes, fds: list[int]) -> None:
    """Each message is one step, however many there were: a guest chooses them, and everybody waits meanwhile."""
    session.last = packet
    message = local.decode_front(packet)
    match message:
        case local.Hello():
            session.hello = packet
        case local.Write(nodes):
            session.nodes.update(nodes)
        case local.Memory(first):
            session.granted[local.Memory, first] = packet, fds
        case local.Event(port):
            session.granted[local.Event, port] = packet, fds
        # Their descriptors' numbers may be others' by now.
        case local.Unmap(first):
            session.granted.pop((local.Memory, first), None)
        case local.Unevent(port):
            session.granted.pop((local.Event, port), None)


def read(fd: int) -> Kept:
    """What a journal says."""
    kept = Kept()
    for record in records(fd):
        kept.take(record)
    return kept
