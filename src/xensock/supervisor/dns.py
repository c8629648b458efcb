"""The guest's DNS server: answers whatever server the guest asks, as the policy decides.

Theory of operation
    In the guest's network namespace every address is local, so that two wildcard sockets on port
    53 receive every question; the reply leaves from the address that was asked. One thread serves
    a guest, with its own event loop (dns_serving): names refused by policy do not exist, others
    go to the resolver, and which name gave which addresses is remembered before the guest can
    know them, because the policy decides the connections that follow by name.

Rules
- Importing this module and starting a server are cheap: asyncio and dnspython are loaded in the
  thread, at the guest's first question.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from xensock.calls.call import Verb
from xensock.calls.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xensock.calls import IPAddress
    from xensock.policy.point import ResolvePolicy

IP_PKTINFO: Final = 8  # <linux/in.h>; not in Python 3.11's socket module
LIMIT = 512  # questions under way at once
IDLE = 10.0  # seconds after which a silent DNS-over-TCP connection is closed (RFC 7766, 6.2.3)


@dataclass(slots=True)
class Counts:
    """Questions of one guest: how many, how many of them were refused, how many addresses were taken out of answers."""

    asked: int = 0
    refused: int = 0
    stripped: int = 0


class LearnedNames(Protocol):
    """What the server needs of `policy.names.Names`."""

    def learn(self, name: str, addresses: Sequence[IPAddress], ttl: float) -> None:
        """Remember that `name` has `addresses`, for `ttl` seconds."""


class MessageResolver(Protocol):
    """What the server needs of `stack.resolver.Resolver`."""

    async def query(self, message: bytes, server: IPAddress | None = None) -> bytes:
        """Answer a DNS query that the guest sent to `server`."""


class DnsServer:
    """Answers the DNS questions of one guest.

    record   is called, in the server's thread, once for every question
    limit    of questions under way; those beyond get SERVFAIL at once
    idle     seconds after which a silent stream is closed
    """

    def __init__(
        self,
        guest: str,
        resolver: MessageResolver,
        policy: ResolvePolicy,
        names: LearnedNames,
        record: Callable[[Record], None],
        *,
        limit: int = LIMIT,
        idle: float = IDLE,
    ) -> None:
        self.guest = guest
        self.resolver = resolver
        self.policy = policy
        self.names = names
        self.record = record
        self.limit = limit
        self.idle = idle
        self.counts = Counts()
        self.streams: deque[socket.socket] = deque()
        self.closing = False
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None

    def start(self, udp: Sequence[socket.socket]) -> None:
        """Serve the bound UDP sockets, which then belong to the server, and streams to come."""
        for sock in udp:
            sock.setblocking(False)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        self._thread = threading.Thread(
            target=self._main, args=(tuple(udp),), name=f"xensock-dns-{self.guest}", daemon=True
        )
        self._thread.start()

    def serve_stream(self, sock: socket.socket) -> None:
        """Serve DNS over TCP (RFC 7766) on a connected stream socket, which then belongs to the
        server. Any thread may call it; a closed server closes the socket."""
        with self._lock:
            if self.closing:
                sock.close()
                return
            self.streams.append(sock)
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Stop: questions under way get no answer, and all sockets are closed."""
        with self._lock:
            if self.closing:
                return
            self.closing = True
            os.eventfd_write(self._wake, 1)
        thread = self._thread
        if thread is None:
            self._release(())
        elif thread is not threading.current_thread():
            thread.join()
        self._sum_up()

    def _sum_up(self) -> None:
        """Record what was refused in all."""
        for what, count in (
            ("questions refused", self.counts.refused),
            ("addresses taken out of answers", self.counts.stripped),
        ):
            if count:
                self.record(Record(time.time(), self.guest, 0, "", Verb.COUNT, what, result=count))

    def _main(self, udp: tuple[socket.socket, ...]) -> None:
        try:
            # Until there is something to do, wait without what the work needs.
            poll = select.poll()
            for fd in (self._wake, *(sock.fileno() for sock in udp)):
                poll.register(fd, select.POLLIN)
            poll.poll()
            if not self.closing:
                from xensock.supervisor.dns_serving import serve

                serve(self, udp, self._wake)
        finally:
            self._release(udp)

    def _release(self, udp: tuple[socket.socket, ...]) -> None:
        with self._lock:
            self.closing = True
            for sock in (*udp, *self.streams):
                sock.close()
            self.streams.clear()
            os.close(self._wake)
