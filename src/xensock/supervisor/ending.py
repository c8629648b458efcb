"""The ends of a guest's connections, for records of how much went each way.

Theory of operation
- The relay and other backends move the bytes and say so when they are done.
- On the direct data path the guest holds the host's socket and we hold nothing. The kernel tells whoever listens to
  sock_diag(7)'s multicast which sockets of the network it destroys, with their last counters, and needs no right for
  that: a socket is known by its SO_COOKIE. What a guest accepted is known by the port on which it listens. While
  anybody listens, every socket of that family on the machine pays for it: a group is joined when a guest's first
  socket needs it.
- A connection may have ended before its beginning is told here, so the last ends of others are remembered. Where the
  kernel had to drop messages, the sockets that are gone are found by a look at all, their bytes unknown.
- The core's ledger knows every connection under way, and sorts what the kernel tells; those whose beginning is a line
  of the audit log end as one there. `_live` has the beginnings of the others.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.record import closed
from xensock.supervisor import tcpinfo
from xensock.supervisor.diag import NETLINK_SOCK_DIAG
from xensock.supervisor.swift import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xensock.calls.address import Endpoint
    from xensock.calls.record import Record
    from xensock.supervisor.tcpinfo import Seen

MOST = 1 << 20  # connections under way that are remembered
NAP_S = 0.005  # messages come by the thousand: fetch several at once
LATE_S = 0.1  # how long after a listener the ends of what it accepted may be told
BUFFER = 8 << 20
SO_RCVBUFFORCE = 33  # socket(7); Python does not name it
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1  # netlink(7), likewise
AGAIN_S = 0.2


class Endings:
    """Tells `record` of the end of each connection it was told of. Methods may be called from any thread."""

    def __init__(self, record: Callable[[Record], None]) -> None:
        self._record = record
        self._lock = threading.Lock()
        self.ledger = Ledger()
        self._live: dict[int, Record] = {}
        self._listening: dict[int, tuple[Endpoint, Record]] = {}
        self._ports: set[int] = set()
        self._past: list[
            tuple[float, Endpoint, Record]
        ] = []  # listeners, and until when they matter
        self._epoch = time.time() - time.monotonic()
        self._running: _Running | None = None
        self._families: frozenset[int] = frozenset()
        self._switching = threading.Lock()

    def watch(self, wanted: bool) -> None:
        """Whether anybody wants to know; not at first. Raises OSError where the kernel has no sock_diag for TCP."""
        with self._switching:
            if wanted and self._running is None:
                self._running = _Running(self._read, self._missed, self._families)
            elif not wanted and self._running is not None:
                self._running.stop()
                self._running = None
                with self._lock:
                    self._live.clear()
                    self._listening.clear()
                    self._heed(set())
                    _core.ledger_clear(self.ledger.handle)

    def expects(self, family: int) -> None:
        """A host's socket of this family, which the guest holds, is about to connect or to listen. Whatever the core
        connects by itself later is like one that it was told of here. Raises OSError."""
        if family in self._families:
            return
        with self._switching:
            # A connected socket of AF_INET6 can become one of AF_INET (ipv6(7), IPV6_ADDRFORM).
            wanted = self._families | {family, socket.AF_INET}
            if self._running is not None:
                self._running.join(wanted)
            self._families = wanted

    def calls(
        self, run: _core.Run, kinds: list[int | None], users: list[int], epoch: float
    ) -> tuple[bytes, int, list[_core.Event]]:
        """The lines of connects that the core carried out, how many those are, and the events of those without a kind;
        `kinds` of the run's samples, `users` of its threads. Their connections were begun by that."""
        epochs = int(epoch * 1e9), int(self._now() * 1e9)
        with self._lock:
            most = 0 if self._running is None else MOST
            return _core.ledger_calls(self.ledger.handle, run[0], kinds, users, *epochs, most)

    def began(self, *records: Record) -> None:
        """Connections of host's sockets that the guest holds were begun, by the calls of those records."""
        over: list[tuple[Record, _core.Counts]] = []
        with self._lock:
            if self._running is None:
                return
            for record in records:
                if record.connection in self._live or len(self._live) >= MOST:
                    continue
                counts = _core.ledger_begin(self.ledger.handle, record.connection, MOST)
                if counts is None:
                    self._live[record.connection] = record
                else:
                    over.append((record, counts))
        for record, counts in over:
            self._record(closed(record, self._now(), *counts))

    def ended(self, record: Record) -> Callable[[int, int, int], None]:
        """For whoever moves the bytes of a connection: takes those sent, those received, and the errno of its end."""

        def told(sent: int, received: int, error: int) -> None:
            self._record(closed(record, self._now(), sent, received, error))

        return told

    def listens(self, cookie: int, local: Endpoint, record: Record) -> None:
        """A host's socket that the guest holds listens there; `record` is of that call."""
        with self._lock:
            if self._running is None:
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
            if self._running is None:
                return 0
            return _core.ledger_live(self.ledger.handle) + len(self._listening)

    def close(self, patience: float = 0.0) -> None:
        """Stop. Connections that still deliver what the guest sent get so many seconds; of what is left then, the
        counters so far are recorded (errno EINPROGRESS)."""
        deadline = time.monotonic() + patience
        served = self._running is not None and bool(self._listening)
        while self.live() and time.monotonic() < deadline:
            time.sleep(NAP_S)
        if served:
            time.sleep(min(patience, LATE_S))  # for what the kernel is about to tell
        if self._running is not None:
            self._running.stop()
            self._running = None
            self._missed(rest=True)

    # --- what the kernel tells

    def _read(self, link: socket.socket) -> bool:
        """Take what has come; whether the kernel had to drop messages."""
        more, dropped = True, False
        while more:
            take = getattr(self._record, "lines", None)
            more, lost, lines, count, ends, others = self._hear(link, take is not None)
            if count and take is not None:
                take(lines, count)
            for begun, counts in ends:
                record = self.ledger.take(begun)
                if record is not None:
                    self._record(closed(record, self._now(), *counts))
            for message in others:
                self._served(message)
            if lost:
                dropped = True
                self._missed()
        return dropped

    def _hear(self, link: socket.socket, as_lines: bool) -> _core.Heard:
        """Fetch messages, and sort them."""
        now = int(self._now() * 1e9)
        return _core.ledger_hear(self.ledger.handle, link.fileno(), now, as_lines)

    def _served(self, message: bytes) -> None:
        """What is gone has a record, was a listener, or had the port of one."""
        cookie = tcpinfo.cookie_of(message)
        with self._lock:
            begun = self._live.pop(cookie, None)
            held = self._listening.pop(cookie, None)
        if begun is not None:
            self._tell(begun, tcpinfo.parse(message))
            return
        if held is not None:
            self._listener_gone(*held)
            return
        seen = tcpinfo.parse(message)
        record = self._accepted(seen)
        if record is not None:
            self._tell(record, seen)
            return
        _core.ledger_stranger(self.ledger.handle, message)

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

    def _listener_gone(self, local: Endpoint, record: Record) -> None:
        """Connections that it accepted may live on: from now on each is known by itself."""
        with _link() as link:
            found = [seen for seen in tcpinfo.dump(link) if seen.local[1] == local.port]
        with self._lock:
            now = time.monotonic()
            self._past = [each for each in self._past if now < each[0]]
            self._past.append((now + LATE_S, local, record))
        self.began(*(known for seen in found if (known := self._accepted(seen)) is not None))
        with self._lock:
            ports = {at.port for at, _ in self._listening.values()}
            self._heed(ports | {at.port for _, at, _ in self._past})

    def _missed(self, rest: bool = False) -> None:
        """Messages were lost, or nobody will listen any more (`rest`)."""
        handle = self.ledger.handle
        if not _core.ledger_live(handle):
            return
        with _link() as link:
            there = {seen.cookie: seen for seen in tcpinfo.dump(link)}
        gone: list[Record] = []
        with self._lock:
            for cookie in _core.ledger_cookies(handle):
                begun = None if cookie in there and not rest else _core.ledger_take(handle, cookie)
                if begun is not None:
                    record = self.ledger.take(begun) or self._live.pop(cookie, None)
                    gone += [record] if record is not None else []
        for record in gone:
            seen = there.get(record.connection)
            if seen is None:
                self._record(closed(record, self._now(), None, None, 0))
                continue
            sent, received, error = tcpinfo.counted(seen.info, record.accepted)
            if error != errno.ENOTCONN:
                error = errno.EINPROGRESS
            self._record(closed(record, self._now(), sent, received, error))

    def _tell(self, record: Record, seen: Seen) -> None:
        sent, received, error = tcpinfo.counted(seen.info, record.accepted)
        self._record(closed(record, self._now(), sent, received, error))

    def _now(self) -> float:
        return self._epoch + time.monotonic()


class _Running:
    """A thread that has messages read, until `stop`."""

    def __init__(
        self,
        read: Callable[[socket.socket], bool],
        missed: Callable[[], None],
        families: Iterable[int],
    ) -> None:
        self._read, self._missed = read, missed
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._link = _link()
        try:
            try:
                self._link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            except PermissionError:  # not more than net.core.rmem_max, then
                self._link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            self._link.bind((0, 0))
            self.join(families)
        except OSError:
            self._link.close()
            os.close(self._stop)
            raise
        self._link.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="xs-endings", daemon=True)
        self._thread.start()

    def join(self, families: Iterable[int]) -> None:
        """Be told of sockets of these families, too. Raises OSError."""
        for family in families:
            self._link.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, tcpinfo.DESTROYED[family])

    def stop(self) -> None:
        """Read what has come, and end."""
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._read(self._link)
        self._link.close()
        os.close(self._stop)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        again = (
            None  # when to look once more: beginnings may be told later than ends that were dropped
        )
        while True:
            rest = None if again is None else max(0.0, again - time.monotonic()) * 1000
            if any(fd == self._stop for fd, _ in poll.poll(rest)):
                return
            if self._read(self._link):
                again = time.monotonic() + AGAIN_S
            elif again is not None and time.monotonic() >= again:
                again = None
                self._missed()
            time.sleep(NAP_S)


def _link() -> socket.socket:
    return socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
    )
