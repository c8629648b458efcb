"""The ends of a guest's connections, for records of how much went each way.

Theory of operation
- The relay and other backends move the bytes and say so when they are done.
- On the direct data path the guest holds the host's socket and we hold nothing. The kernel tells whoever listens to
  sock_diag(7)'s multicast which sockets of the network it destroys, with their last counters, and needs no right for
  that: a socket is known by its SO_COOKIE. What a guest accepted is known by the port on which it listens.
- A connection may have ended before its beginning is told here, so the last ends of others are remembered. Where the
  kernel had to drop messages, the sockets that are gone are found by a look at all, their bytes unknown.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from xensock.calls.record import closed
from xensock.supervisor import tcpinfo
from xensock.supervisor.diag import NETLINK_SOCK_DIAG
from xensock.supervisor.swift import Begun

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.address import Endpoint
    from xensock.calls.record import Record
    from xensock.supervisor.tcpinfo import Seen

REMEMBERED = 16384  # ends of sockets that nobody told us of
MOST = 1 << 20  # connections under way that are remembered
NAP_S = 0.005  # messages come by the thousand: fetch several at once
LATE_S = 0.1  # how long after a listener the ends of what it accepted may be told
BUFFER = 8 << 20
SO_RCVBUFFORCE = 33  # socket(7); Python does not name it
AGAIN_S = 0.2
BATCH = 256  # messages that are looked at together
LARGEST = 4096  # bytes of one; they have some 500


class Endings:
    """Tells `record` of the end of each connection it was told of. Methods may be called from any thread."""

    def __init__(self, record: Callable[[Record], None]) -> None:
        self._record = record
        self._lock = threading.Lock()
        self._live: dict[int, Record | Begun] = {}
        self._listening: dict[int, tuple[Endpoint, Record]] = {}
        self._ports: set[int] = set()
        self._past: list[
            tuple[float, Endpoint, Record]
        ] = []  # listeners, and until when they matter
        self._strangers: OrderedDict[int, bytes] = OrderedDict()  # what the kernel said of each
        self._epoch = time.time() - time.monotonic()
        self._running: _Running | None = None
        self._switching = threading.Lock()

    def watch(self, wanted: bool) -> None:
        """Whether anybody wants to know; not at first. Raises OSError where the kernel has no sock_diag for TCP."""
        with self._switching:
            if wanted and self._running is None:
                self._running = _Running(self._read, self._missed)
            elif not wanted and self._running is not None:
                self._running.stop()
                self._running = None
                with self._lock:
                    self._live.clear()
                    self._listening.clear()
                    self._strangers.clear()

    def began(self, *records: Record | Begun) -> None:
        """Connections of host's sockets that the guest holds were begun, by the calls of those records."""
        over: list[tuple[Record | Begun, bytes]] = []
        with self._lock:
            if self._running is None:
                return
            for record in records:
                if record.connection in self._live or len(self._live) >= MOST:
                    continue
                message = self._strangers.pop(record.connection, None)
                if message is None:
                    self._live[record.connection] = record
                else:
                    over.append((record, message))
        self._over(over)

    def _over(self, ends: list[tuple[Record | Begun, bytes]]) -> None:
        """Tell of the ends of connections of the guest's own making: as lines, where they began so and are wanted."""
        take = getattr(self._record, "lines", None)
        lines: list[bytes] = []
        now = self._now()
        for begun, message in ends:
            if take is not None and isinstance(begun, Begun):
                lines.append(begun.end(now, *tcpinfo.counted(tcpinfo.info_of(message), False)))
            else:
                self._tell(begun, tcpinfo.parse(message))
        if take is not None and lines:
            take(lines)

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
            self._ports.add(local.port)

    def live(self) -> int:
        """How many connections and listeners there are whose end the kernel will tell of."""
        with self._lock:
            return len(self._live) + len(self._listening) if self._running is not None else 0

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
            messages: list[bytes] = []
            more, lost = self._batch(link, messages)
            over: list[tuple[Record | Begun, bytes]] = []
            served: list[bytes] = []
            with self._lock:
                for message in messages:
                    cookie = tcpinfo.cookie_of(message)
                    record = self._live.pop(cookie, None)
                    if record is not None:
                        over.append((record, message))
                    elif cookie in self._listening or tcpinfo.port_of(message) in self._ports:
                        served.append(message)
                    else:
                        self._strangers[cookie] = message
                while len(self._strangers) > REMEMBERED:
                    self._strangers.popitem(last=False)
            self._over(over)
            for message in served:
                self._served(message)
            if lost:
                dropped = True
                self._missed()
        return dropped

    def _batch(self, link: socket.socket, found: list[bytes]) -> tuple[bool, bool]:
        """Fetch messages; whether there may be more, and whether the kernel had to drop some."""
        try:
            while len(found) < BATCH:
                message = link.recv(LARGEST)
                if len(message) >= tcpinfo.LEAST:
                    found.append(message)
        except BlockingIOError:
            return False, False
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return True, True
        return True, False

    def _served(self, message: bytes) -> None:
        """What is gone was a listener, or had the port of one."""
        cookie = tcpinfo.cookie_of(message)
        with self._lock:
            held = self._listening.pop(cookie, None)
        if held is not None:
            self._listener_gone(*held)
            return
        seen = tcpinfo.parse(message)
        record = self._accepted(seen)
        if record is not None:
            self._tell(record, seen)
            return
        with self._lock:
            self._strangers[cookie] = message

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
        for seen in found:
            known = self._accepted(seen)
            if known is not None:
                with self._lock:
                    self._live.setdefault(seen.cookie, known)
        with self._lock:
            self._ports = {at.port for at, _ in self._listening.values()}
            self._ports |= {at.port for _, at, _ in self._past}

    def _missed(self, rest: bool = False) -> None:
        """Messages were lost, or nobody will listen any more (`rest`)."""
        if not self._live:
            return
        with _link() as link:
            there = {seen.cookie: seen for seen in tcpinfo.dump(link)}
        with self._lock:
            known = list(self._live.values()) if rest else []
            known = known or [r for key, r in self._live.items() if key not in there]
            for record in known:
                del self._live[record.connection]
        for each in known:
            record = each.record if isinstance(each, Begun) else each
            seen = there.get(record.connection)
            if seen is None:
                self._record(closed(record, self._now(), None, None, 0))
                continue
            sent, received, error = tcpinfo.counted(seen.info, record.accepted)
            if error != errno.ENOTCONN:
                error = errno.EINPROGRESS
            self._record(closed(record, self._now(), sent, received, error))

    def _tell(self, record: Record | Begun, seen: Seen) -> None:
        if isinstance(record, Begun):
            record = record.record
        sent, received, error = tcpinfo.counted(seen.info, record.accepted)
        self._record(closed(record, self._now(), sent, received, error))

    def _now(self) -> float:
        return self._epoch + time.monotonic()


class _Running:
    """A thread that has messages read, until `stop`."""

    def __init__(self, read: Callable[[socket.socket], bool], missed: Callable[[], None]) -> None:
        self._read, self._missed = read, missed
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._link = _link()
        try:
            try:
                self._link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            except PermissionError:  # not more than net.core.rmem_max, then
                self._link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            self._link.bind((0, tcpinfo.DESTROYED))
        except OSError:
            self._link.close()
            os.close(self._stop)
            raise
        self._link.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="xs-endings", daemon=True)
        self._thread.start()

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
