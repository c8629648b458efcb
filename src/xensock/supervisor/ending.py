"""The ends of a guest's connections, for records of how much went each way.

Theory of operation
- The relay and other backends move the bytes and say so when they are done.
- On the direct data path the guest holds the host's socket and we hold nothing. The kernel tells of sockets that end,
  with their last counters (end_sources.py): a socket is known by its SO_COOKIE. What a guest accepted is known by the
  port on which it listens. By the multicast a socket ends once, when it is destroyed, and everybody's sockets of its
  family pay for that: a group is joined when a guest's first socket needs it. By the program it ends whenever its
  connection does, and may have further ones, so such an end has its moment: one before a connection's beginning was
  that of an earlier one.
- A connection may have ended before its beginning is told here, so the last ends of others are remembered. Where the
  kernel had to drop messages, the sockets that are gone are found by a look at all, their bytes unknown.
- The core's ledger knows every connection under way, and sorts what the kernel tells; those whose beginning is a line
  of the audit log end as one there. `_live` has the beginnings of the others.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.record import closed
from xensock.supervisor import tcpinfo
from xensock.supervisor.diag import open_link
from xensock.supervisor.end_sources import NAP_S, Multicast, Program, netns_cookie
from xensock.supervisor.swift import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.address import Endpoint
    from xensock.calls.record import Record
    from xensock.supervisor.end_sources import Source
    from xensock.supervisor.tcpinfo import Seen

MOST = 1 << 20  # connections under way that are remembered
LATE_S = 0.1  # how long after a listener the ends of what it accepted may be told


class Endings:
    """Tells `record` of the end of each connection it was told of; `epoch` is the unix time, in seconds, at which
    CLOCK_MONOTONIC began by the clock of its records. Methods may be called from any thread."""

    def __init__(self, record: Callable[[Record], None], epoch: float) -> None:
        self._record = record
        self._lock = threading.Lock()
        self.ledger = Ledger()
        self._live: dict[int, Record] = {}
        self._listening: dict[int, tuple[Endpoint, Record]] = {}
        self._ports: set[int] = set()
        self._past: list[
            tuple[float, Endpoint, Record]
        ] = []  # listeners, and until when they matter
        self._epoch = epoch
        self._netns = netns_cookie()
        self._source: Source | None = None
        self._families: frozenset[int] = frozenset()
        self._switching = threading.Lock()

    def watch(self, wanted: bool) -> None:
        """Whether anybody wants to know; not at first. Raises OSError where the kernel has no sock_diag for TCP."""
        with self._switching:
            if wanted and self._source is None:
                self._source = self._open()
            elif not wanted and self._source is not None:
                self._source.stop()
                self._source = None
                with self._lock:
                    self._live.clear()
                    self._listening.clear()
                    self._heed(set())
                    _core.ledger_clear(self.ledger.handle)

    def _open(self) -> Source:
        try:
            return Program(self._hear_of, self._missed)
        except (OSError, ValueError, ImportError, RuntimeError):  # then as everybody may
            return Multicast(self._read, self._missed, self._families)

    def expects(self, family: int) -> None:
        """A host's socket of this family, which the guest holds, is about to connect or to listen. Whatever the core
        connects by itself later is like one that it was told of here. Raises OSError."""
        if family in self._families:
            return
        with self._switching:
            # A connected socket of AF_INET6 can become one of AF_INET (ipv6(7), IPV6_ADDRFORM).
            wanted = self._families | {family, socket.AF_INET}
            if self._source is not None:
                self._source.join(wanted)
            self._families = wanted

    def calls(
        self, run: _core.Run, kinds: list[int | None], users: list[int]
    ) -> tuple[bytes, int, list[_core.Event]]:
        """The lines of connects that the core carried out, how many those are, and the events of those without a kind;
        `kinds` of the run's samples, `users` of its threads. Their connections were begun by that."""
        self._pump()
        times = int(self._epoch * 1e9), int(self._now() * 1e9)
        with self._lock:
            most = 0 if self._source is None else MOST
            return _core.ledger_calls(self.ledger.handle, run[0], kinds, users, *times, most)

    def began(self, *records: Record) -> None:
        """Connections of host's sockets that the guest holds were begun, by the calls of those records."""
        self._pump()
        self._begin(*records)

    def _pump(self) -> None:
        """An earlier end of a socket that is about to be told of again, is told first."""
        source = self._source
        if source is not None:
            source.pump()

    def _begin(self, *records: Record) -> None:
        over: list[tuple[Record, _core.Counts]] = []
        with self._lock:
            if self._source is None:
                return
            for record in records:
                if record.connection in self._live or len(self._live) >= MOST:
                    continue
                moment = int(record.time * 1e9)
                counts = _core.ledger_begin(self.ledger.handle, record.connection, moment, MOST)
                if counts is None:
                    self._live[record.connection] = record
                elif counts:
                    over.append((record, counts))
        for record, counts in over:
            self._tell(record, *counts)

    def ended(self, record: Record) -> Callable[[int, int, int], None]:
        """For whoever moves the bytes of a connection: takes those sent, those received, and the errno of its end."""

        def told(sent: int, received: int, error: int) -> None:
            self._tell(record, sent, received, error)

        return told

    def listens(self, cookie: int, local: Endpoint, record: Record) -> None:
        """A host's socket that the guest holds listens there; `record` is of that call."""
        self._pump()
        with self._lock:
            if self._source is None:
                return
            self._listening[cookie] = (local, record)
            self._heed(self._ports | {local.port})

    def _heed(self, ports: set[int]) -> None:
        """Ends of sockets with these ports are looked at, which may be those of connections that the guest accepted."""
        for port in self._ports ^ ports:
            _core.ledger_heed(self.ledger.handle, port, port in ports)
        self._ports = ports

    def live(self) -> int:
        """How many connections and listeners there are whose end the kernel will tell of."""
        with self._lock:
            if self._source is None:
                return 0
            return _core.ledger_live(self.ledger.handle) + len(self._listening)

    def close(self, patience: float = 0.0) -> None:
        """Stop. Connections that still deliver what the guest sent get so many seconds; of what is left then, the
        counters so far are recorded (errno EINPROGRESS)."""
        deadline = time.monotonic() + patience
        served = bool(self._listening)
        self._pump()
        while self.live() and time.monotonic() < deadline:
            time.sleep(NAP_S)
            self._pump()
        if self._source is not None:
            if served:
                time.sleep(min(patience, self._source.late))  # for what the kernel is about to tell
            self._source.stop()
            self._source = None
            self._missed(rest=True)

    # --- what the kernel tells

    def _read(self, link: socket.socket) -> bool:
        """Take what has come; whether the kernel had to drop messages."""
        more, dropped = True, False
        while more:
            heard = self._hear(link, self._as_lines())
            self._take(heard)
            more, lost = heard[:2]
            if lost:
                dropped = True
                self._missed()
        return dropped

    def _hear(self, link: socket.socket, as_lines: bool) -> _core.Heard:
        """Fetch messages, and sort them."""
        now = int(self._now() * 1e9)
        return _core.ledger_hear(self.ledger.handle, link.fileno(), now, as_lines)

    def _hear_of(self, messages: bytes) -> None:
        """Sort messages, one behind the other."""
        times = int(self._epoch * 1e9), int(self._now() * 1e9)
        handle = self.ledger.handle
        self._take(_core.ledger_hear_of(handle, messages, *times, self._as_lines()))

    def _as_lines(self) -> bool:
        return getattr(self._record, "lines", None) is not None

    def _take(self, heard: _core.Heard) -> None:
        _, _, lines, count, ends, others = heard
        take = getattr(self._record, "lines", None)
        if count and take is not None:
            take(lines, count)
        for begun, counts in ends:
            record = self.ledger.take(begun)
            if record is not None:
                self._tell(record, *counts)
        for message in others:
            self._served(message)

    def _served(self, message: bytes) -> None:
        """What is gone has a record, was a listener, or had the port of one."""
        seen = tcpinfo.parse(message)
        ended_ns = tcpinfo.ended_ns(message)
        ended_ns += int(self._epoch * 1e9) if ended_ns else 0
        with self._lock:
            record = self._live.pop(seen.cookie, None)
            held = None if record is not None else self._listening.get(seen.cookie)
        if held is not None:
            if not ended_ns or ended_ns >= int(held[1].time * 1e9):  # not before it listened again
                self._listener_gone(seen.cookie)
            return
        if record is None and tcpinfo.netns_of(message) in (0, self._netns):
            record = self._accepted(seen)
        if record is not None:
            self._tell(record, *tcpinfo.counted(seen.info, record.accepted), ended_ns)
            return
        _core.ledger_stranger(self.ledger.handle, message, int(self._epoch * 1e9))

    def _accepted(self, seen: Seen) -> Record | None:
        """The record of a connection that others made to a listener of the guest's."""
        if not seen.remote[1]:
            return None
        local, remote = seen.end(seen.local), seen.end(seen.remote)
        now = time.monotonic()
        with self._lock:
            past = [(at, record) for until, at, record in self._past if now < until]
            for at, record in (*self._listening.values(), *past):
                if at.port == local.port and (at.host.is_unspecified or at.host == local.host):
                    return replace(
                        record,
                        time=0.0,
                        target=str(remote),
                        connection=seen.cookie,
                        accepted=True,
                    )
        return None

    def _listener_gone(self, cookie: int) -> None:
        """Connections that it accepted may live on: from now on each is known by itself. It is live until they are."""
        held = self._listening.get(cookie)
        if held is None:  # nobody wants to know any more
            return
        local, record = held
        with open_link() as link:
            found = [seen for seen in tcpinfo.dump(link) if seen.local[1] == local.port]
        with self._lock:
            now = time.monotonic()
            self._past = [each for each in self._past if now < each[0]]
            self._past.append((now + LATE_S, local, record))
        self._begin(*(known for seen in found if (known := self._accepted(seen)) is not None))
        with self._lock:
            if self._listening.get(cookie) is held:
                del self._listening[cookie]
            ports = {at.port for at, _ in self._listening.values()}
            self._heed(ports | {at.port for _, at, _ in self._past})

    def _missed(self, rest: bool = False) -> None:
        """Messages were lost, or nobody will listen any more (`rest`)."""
        handle = self.ledger.handle
        if not _core.ledger_live(handle):
            return
        cookies = _core.ledger_cookies(handle)  # those that begin from now on are not in question
        with open_link() as link:
            there = {seen.cookie: seen for seen in tcpinfo.dump(link)}
        gone: list[Record] = []
        with self._lock:
            for cookie in cookies:
                begun = None if cookie in there and not rest else _core.ledger_take(handle, cookie)
                if begun is not None:
                    record = self.ledger.take(begun) or self._live.pop(cookie, None)
                    gone += [record] if record is not None else []
        for record in gone:
            seen = there.get(record.connection)
            if seen is None:
                self._tell(record, None, None, 0)
                continue
            sent, received, error = tcpinfo.counted(seen.info, record.accepted)
            if error != errno.ENOTCONN:
                error = errno.EINPROGRESS
            self._tell(record, sent, received, error)

    def _tell(
        self,
        record: Record,
        sent: int | None,
        received: int | None,
        error: int,
        ended_ns: int = 0,
    ) -> None:
        """The connection ended then, or now."""
        moment = ended_ns / 1e9 if ended_ns else self._now()
        self._record(closed(record, moment, sent, received, error))

    def _now(self) -> float:
        return self._epoch + time.monotonic()
