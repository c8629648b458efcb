"""Connections that guests accept: we accept the client and dial the guest's own listener from the client's address.

Theory of operation
- The guest's listener is an ordinary socket in its own namespace; backlog, accept and options are the kernel's. Since
  every address is local there, a socket of ours can be bound to the client's address and connect to the very host
  address that the client used, so that accept(2), getpeername(2) and getsockname(2) tell the guest the truth.
- The kernel tells by sock_diag(7) multicast which sockets it destroys; that is how the host's port is freed as soon
  as the guest closes its listener, without a reference of ours that would keep it open.
- An epoll(7) entry is no such reference either: it lives until the guest's last descriptor is closed, and says when a
  listener hangs up, which shutdown(2) makes it do.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from xensock.calls.address import Endpoint
from xensock.loop import IN, OUT, Loop
from xensock.supervisor import options
from xensock.supervisor.diag import CONNECTED, HOLDING, NETLINK_SOCK_DIAG, TCP_LISTEN, Diag
from xensock.supervisor.relay_client import Ended, Join
from xensock.supervisor.relay_ends import Name, name_of, reset
from xensock.supervisor.relay_wire import MakeSocket, attach_filter

if TYPE_CHECKING:
    from concurrent.futures import Future

    from xensock.calls.address import IPAddress

_TCP_DESTROY_GROUPS = 1 << 0 | 1 << 2  # SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY
_DPORT, _COOKIE = 16 + 6, 16 + 4 + 4 + 32 + 4  # within a message with struct inet_diag_msg

_DIALS = 128  # per listener; more clients wait in the kernel's queue
_REMEMBERED = 1024


# Called with the client's socket, on the relay's thread, before its bytes move: who is told of its end.
Opened = Callable[[socket.socket], Ended | None]


@dataclass(slots=True, eq=False)
class _Publication:
    listener: socket.socket
    fd: int
    port: int
    loopback: IPAddress | None
    closed: Callable[[], None]
    ended: Ended | None
    opened: Opened | None
    dials: int = 0
    paused: bool = False
    gone: bool = False


class Server:
    """One guest's listeners."""

    def __init__(self, loop: Loop, make_socket: MakeSocket, join: Join) -> None:
        self._loop = loop
        self._make = make_socket
        self._join = join
        self._lock = threading.RLock()
        self._published: dict[socket.socket, _Publication] = {}
        self._dials: dict[socket.socket, socket.socket] = {}  # towards the guest: the client's
        self._watched: dict[int, Callable[[], None]] = {}
        self._bound: set[int] = set()  # of the watched, those that do not listen yet
        self._hung: tuple[select.epoll, Diag] | None = None  # the latter kept, to be fast
        self._heeded: dict[int, Callable[[], None]] = {}
        self._destroyed: deque[int] = deque(maxlen=_REMEMBERED)
        self._diag: socket.socket | None = None
        self._closed = False
        self.admit: Callable[[Endpoint, int], bool | Future[bool]] = lambda client, port: True

    # ---- clients ----

    def publish(
        self,
        listener: socket.socket,
        port: int,
        loopback: IPAddress | None,
        closed: Callable[[], None],
        ended: Ended | None,
        opened: Opened | None = None,
    ) -> None:
        """See Relay.publish."""
        listener.setblocking(False)
        p = _Publication(listener, listener.fileno(), port, loopback, closed, ended, opened)
        with self._lock:
            self._published[listener] = p
            self._loop.add(p.fd, IN, lambda _: self._accept(p))

    def unpublish(self, listener: socket.socket) -> None:
        """See Relay.unpublish."""
        with self._lock:
            p = self._published.pop(listener, None)
            if p is None:
                return
            p.gone = True
            self._loop.remove(p.fd)
            listener.close()

    def withdraw(self, listener: socket.socket) -> None:
        """See Relay.withdraw."""
        with self._lock:
            p = self._published.pop(listener, None)
            if p is not None:
                p.gone = True
                self._loop.remove(p.fd)

    def _accept(self, p: _Publication) -> None:
        while not p.gone and not p.paused:
            try:
                client, address = p.listener.accept()
            except BlockingIOError:
                return
            except OSError as e:
                self._accept_failed(p, e)
                return
            admitted = self.admit(Endpoint.from_python(address).unmapped(), p.port)
            if isinstance(admitted, bool):
                self._admitted(p, client, address, admitted)
                continue
            admitted.add_done_callback(partial(self._told, p, client, address))

    def _told(
        self, p: _Publication, client: socket.socket, address: Any, told: Future[bool]
    ) -> None:
        """Somebody said, on whatever thread, whether a client is admitted."""
        self._loop.later(0, lambda: self._admitted(p, client, address, told.result()))

    def _admitted(
        self, p: _Publication, client: socket.socket, address: Any, admitted: bool
    ) -> None:
        if not admitted or p.gone:
            reset(client)
            return
        try:
            self._dial(p, client, address)
        except OSError:
            # The guest's kernel refuses, or descriptors are short: the client learns that nobody is there.
            reset(client)

    def _accept_failed(self, p: _Publication, e: OSError) -> None:
        with self._lock:
            if p.gone or e.errno in (errno.ECONNABORTED, errno.EINTR, errno.EPROTO):
                return
            if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._pause(p)
                self._loop.later(0.05, lambda: self._resume(p))
                return
        self.unpublish(p.listener)
        p.closed()

    def _pause(self, p: _Publication) -> None:
        with self._lock:
            if not p.paused and not p.gone:
                p.paused = True
                self._loop.remove(p.fd)

    def _resume(self, p: _Publication) -> None:
        with self._lock:
            if p.paused and not p.gone:
                p.paused = False
                self._loop.add(p.fd, IN, lambda _: self._accept(p))

    def _dial(
        self,
        p: _Publication,
        client: socket.socket,
        address: tuple[str, int] | tuple[str, int, int, int],
    ) -> None:
        host, port = name_of(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        target = name_of(client.getsockname())[0]
        sources: tuple[Name | None, ...] = ((host, port), (host, 0), None)
        if p.loopback is not None:
            target = str(p.loopback)
            if (":" in target) != (":" in host):
                sources = (None,)  # a client of the other family has no name in this one
            family = socket.AF_INET6 if ":" in target else socket.AF_INET
        # The client's own name; where the kernel cannot have that, what comes nearest to it.
        for source in sources:
            if source == (target, p.port):
                continue  # it would connect to itself
            guest = self._make(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
            try:
                guest.setblocking(False)
                options.unpaced(guest)
                if source is not None:
                    guest.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    # The guest may listen on the very port that the client comes from.
                    options.bind_beside(guest, source)
                error = guest.connect_ex((target.partition("%")[0], p.port))
            except OSError as e:
                error = e.errno or errno.EIO
            if error in (0, errno.EINPROGRESS):
                self._dialled(p, client, guest)
                return
            guest.close()
            if error == errno.ECONNREFUSED:
                break
        raise OSError(error, "the guest's listener cannot be reached")

    def _dialled(self, p: _Publication, client: socket.socket, guest: socket.socket) -> None:
        if self._finish(p, client, guest):
            return
        # The guest's queue is full: its kernel has dropped our SYN, which is repeated.
        with self._lock:
            if self._closed:
                guest.close()
                reset(client)
                return
            self._dials[guest] = client
            p.dials += 1
            if p.dials >= _DIALS:
                self._pause(p)
            self._loop.add(guest.fileno(), OUT, lambda _: self._dial_event(p, guest))

    def _dial_event(self, p: _Publication, guest: socket.socket) -> None:
        with self._lock:
            fd, client = guest.fileno(), self._dials.get(guest)
            if client is None or not self._finish(p, client, guest, fd):
                return
            del self._dials[guest]
            p.dials -= 1
            if p.dials < _DIALS:
                self._resume(p)

    def _finish(
        self, p: _Publication, client: socket.socket, guest: socket.socket, watched: int = -1
    ) -> bool:
        """Join both when the guest's kernel has accepted, part them when it has refused; False: not yet known."""
        poll = select.poll()
        poll.register(guest, select.POLLOUT)
        if not poll.poll(0):
            return False
        if watched >= 0:
            self._loop.remove(watched)
        if guest.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            guest.close()
            reset(client)
        else:
            self._join(guest, client, p.ended if p.opened is None else p.opened(client))
        return True

    # ---- the guest's listeners ----

    def watch(self, cookie: int, closed: Callable[[], None], listening: bool = True) -> None:
        """See Relay.watch."""
        with self._lock:
            if self._diag is None:
                self._diag = self._open_diag()
                self._loop.add(self._diag.fileno(), IN, lambda _: self._read_diag())
                known = not listening or cookie in self._there()
            else:
                known = cookie not in self._destroyed
            if known:
                self._watched[cookie] = closed
                (self._bound.discard if listening else self._bound.add)(cookie)
                return
        self._loop.later(0, closed)

    def unwatch(self, cookie: int) -> None:
        """See Relay.unwatch."""
        with self._lock:
            self._watched.pop(cookie, None)
            self._heeded.pop(cookie, None)
            self._bound.discard(cookie)

    def heed(self, listener: socket.socket, cookie: int, shut: Callable[[], None]) -> None:
        """See Relay.heed."""
        with self._lock:
            if self._hung is None:
                self._hung = select.epoll(), self._ask()
                self._loop.add(self._hung[0].fileno(), IN, lambda _: self._look())
            self._heeded[cookie] = shut
            try:
                self._hung[0].register(listener.fileno(), select.EPOLLONESHOT)
            except FileExistsError:  # by that number before
                self._hung[0].modify(listener.fileno(), select.EPOLLONESHOT)

    def _look(self) -> None:
        """Some listener hung up, which none of our descriptors can say by now."""
        with self._lock:
            if self._hung is None:
                return
            hung, diag = self._hung
            hung.poll(0)
            gone: set[int] = set()
            with contextlib.suppress(OSError):  # a kernel that shows none
                there = {each.cookie for each in diag.held(states=1 << TCP_LISTEN)}
                gone = self._heeded.keys() - there
            calls = [self._heeded.pop(cookie) for cookie in gone]
        for call in calls:
            call()

    def _open_diag(self) -> socket.socket:
        diag = self._make(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
        )
        try:
            diag.setblocking(False)
            # Connections come and go by the thousand; sockets without a peer are few.
            load, equal, ret = 0x28, 0x15, 0x06
            code = ((load, 0, 0, _DPORT), (equal, 0, 1, 0), (ret, 0, 0, 0xFFFF), (ret, 0, 0, 0))
            attach_filter(diag, b"".join(struct.pack("=HBBI", *line) for line in code))
            diag.bind((0, _TCP_DESTROY_GROUPS))
        except OSError:
            diag.close()
            raise
        return diag

    def _read_diag(self) -> None:
        calls: list[Callable[[], None]] = []
        with self._lock:
            diag = self._diag
            while diag is not None:
                try:
                    message = diag.recv(0xFFFF)
                except BlockingIOError:
                    break
                except OSError as e:
                    if e.errno != errno.ENOBUFS:
                        raise
                    gone = self._watched.keys() - self._there()  # messages were lost
                else:
                    if len(message) < _COOKIE + 8:
                        continue
                    (cookie,) = struct.unpack_from("=Q", message, _COOKIE)
                    self._destroyed.append(cookie)
                    gone = {cookie} & self._watched.keys()
                calls += [self._watched.pop(cookie) for cookie in gone]
                for cookie in gone:
                    self._heeded.pop(cookie, None)
                self._bound -= gone
        for call in calls:
            call()

    def _there(self) -> set[int]:
        """Cookies of the guest's TCP sockets that have a port. Before Linux 6.8 the kernel does not tell of those that
        are only bound: of them, all that are watched. None once the guest is gone."""
        try:
            asked = self._ask()
        except ProcessLookupError:
            return set()
        with contextlib.closing(asked) as diag:
            try:
                found = {each.cookie for each in diag.held(states=HOLDING | CONNECTED)}
            except OSError:  # a kernel that shows none: all may be
                return set(self._watched)
            return found if diag.shows_bound(self._make) else found | self._bound

    def _ask(self) -> Diag:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        return Diag(self._make(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG))

    def close(self) -> None:
        """Close all listeners and unfinished dials. Called once, before the loop stops."""
        with self._lock:
            self._closed = True
            for listener in list(self._published):
                self.unpublish(listener)
            for guest, client in self._dials.items():
                self._loop.remove(guest.fileno())
                guest.close()
                reset(client)
            self._dials.clear()
            self._watched.clear()
            self._heeded.clear()
            if self._hung is not None:
                self._loop.remove(self._hung[0].fileno())
                for each in self._hung:
                    each.close()
                self._hung = None
            if self._diag is not None:
                self._loop.remove(self._diag.fileno())
                self._diag.close()
                self._diag = None
