"""Connections that guests make: their own socket ends at a listener of ours, and we dial the far side.

Theory of operation
- Fast: the far side answers at once (same host, same rack). A listener at the real destination, inside the guest's
  namespace, takes the guest's connection; its marked SYN passes the listener's filter (synreplay.py).
- Held: it does not. The guest's SYN is dropped by that filter, so the guest's socket is in SYN_SENT as natively, and
  nothing of ours has to imitate poll(2), EALREADY or EINTR. When the far side is up the SYN is replayed; when it
  fails, the packet that natively brings that errno is sent.
- Promised: nobody dials yet, since who would carry the call has not answered. Held all the same, until that is known.
- No reference to the guest's file is kept: a close by the guest must be one. Whether it still waits is asked of
  sock_diag(7), by address and cookie.

Rules
- `_lock` guards listeners, holds and the wire. Accepting a connection and knowing whose it is happen under it.
- A listener must outlive the holds that use it: without it the guest's next SYN would be refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.loop import IN, OUT, Loop
from xensock.supervisor import options
from xensock.supervisor.carried import Carrier, asked_of
from xensock.supervisor.relay_ends import (
    address_for,
    is_possible,
    name_of,
    outcome_of,
    reset,
    segments_like,
    tcp_state,
)
from xensock.supervisor.relay_names import Start, called_as
from xensock.supervisor.relay_wire import (
    SO_DETACH_FILTER,
    SO_MARK,
    TCP_SYN_SENT,
    MakeSocket,
    Wire,
    attach_filter,
    connect_local,
    cookie_of,
)
from xensock.supervisor.synreplay import Syn, listener_filter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.supervisor.carried import Asked
    from xensock.supervisor.relay_ends import Name

# Hands a guest's end and a far end to the mover, with what to call when the connection has ended.
Join = Callable[[socket.socket, socket.socket, "Ended | None"], None]
Ended = Callable[[int, int, int], None]

TCP_CLOSE = 7
LOOPBACK = 1  # its interface's index in every network (LOOPBACK_IFINDEX, linux/net/flow.h)

_FAST_WAIT_US = 2000
_HOLD_WAIT_US = 100
_CHECK = 0.5  # seconds between looks at the guests that are held
_CHECKS_BLIND = 20  # after as many, a guest that cannot be looked up has given up
_LISTENERS = 256
_BACKLOG = 4096


class _Stage(Enum):
    DIALLING = auto()  # the far side has not answered
    ANSWERED = auto()  # it is up: the SYN was replayed, or will be when it is caught
    REFUSED = auto()  # it failed, and the guest was told, or will be
    SILENT = auto()  # it timed out: the guest's own timer brings the ETIMEDOUT


@dataclass(slots=True, eq=False)
class _Listener:
    target: Endpoint
    sock: socket.socket
    cookie: int
    forced: bool  # bound in spite of a conflict, by TCP_REPAIR, which its children inherit
    waiting: dict[Name, tuple[socket.socket, Ended | None]] = field(default_factory=dict)
    watched: bool = False
    users: int = 0

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.users


@dataclass(slots=True, eq=False)
class Hold:
    """A guest's connection that waits in SYN_SENT. `gave_up` is told where it ends before anything dials for it."""

    own: Endpoint
    target: Endpoint
    cookie: int
    far: socket.socket | None
    listener: _Listener
    ended: Ended | None
    gave_up: Callable[[], None] | None = None
    stage: _Stage = _Stage.DIALLING
    error: int = 0
    syn: Syn | None = None
    checks: int = 0  # since the far side has answered, or failed

    @property
    def key(self) -> tuple[Endpoint, Endpoint]:
        return (self.own, self.target)


class Client:
    """One guest's outgoing connections."""

    def __init__(
        self, loop: Loop, make_socket: MakeSocket, far_socket: MakeSocket, join: Join
    ) -> None:
        self._loop = loop
        self._make = make_socket
        self._far = far_socket
        self._join = join
        self._mark = int.from_bytes(os.urandom(4), "little") >> 1 | 1  # Python takes it for an int
        self._filter = listener_filter(self._mark)
        self._wire = Wire(make_socket, self._mark)
        self._lock = threading.RLock()
        self._listeners: OrderedDict[Endpoint, _Listener] = OrderedDict()
        # Cookies of those closed last: whoever was told of one a moment ago must still learn that it was ours.
        self._gone: deque[int] = deque(maxlen=_LISTENERS)
        self._holds: dict[tuple[Endpoint, Endpoint], Hold] = {}
        self._given_up: deque[Callable[[], None]] = deque()  # of holds that were dropped
        self._checking = False
        self._carrier = Carrier()
        self._closed = False

    def connect(
        self,
        guest: socket.socket,
        dest: Endpoint,
        dial: Endpoint | str | None,
        ended: Ended | None,
        far: socket.socket | None = None,
        far_socket: MakeSocket | None = None,
        begun: int | None = None,
    ) -> int:
        """See Relay.connect."""
        target, address = dest.unmapped(), address_for(guest, dest)
        if tcp_state(guest) != TCP_CLOSE or not is_possible(guest, target):
            # Already connecting, connected or listening, or never possible: the kernel knows what to answer.
            if far is not None:
                far.close()
            return _core.connect_start(guest.fileno(), address, _HOLD_WAIT_US)
        to = target if dial is None else dial
        try:
            if far is None:
                family = target.family if isinstance(to, str) else to.unmapped().family
                kind = socket.SOCK_STREAM | socket.SOCK_CLOEXEC
                far = (far_socket or self._far)(family, kind, 0)
            if begun is None:
                begun = self.begin(asked_of(guest) if isinstance(to, Endpoint) else {}, far, to)
            error = begun
            if error in (0, errno.EINPROGRESS):
                return self._dialled(guest, address, target, far, ended, dial is None)
        except OSError as e:
            error = e.errno or errno.EIO
        if far is not None:
            far.close()
        return error

    def promise(
        self, guest: socket.socket, dest: Endpoint, gave_up: Callable[[], None]
    ) -> Hold | int:
        """See Relay.promise."""
        target, address = dest.unmapped(), address_for(guest, dest)
        begin = partial(_core.connect_start, guest.fileno(), address)
        if tcp_state(guest) != TCP_CLOSE or not is_possible(guest, target):
            return begin(_HOLD_WAIT_US)
        with self._lock:
            if self._closed:
                return errno.ENETDOWN
            hold = self._hold(guest, begin, target)
            if isinstance(hold, int):
                return hold
            hold.gave_up = gave_up
            with contextlib.suppress(OSError):  # _check() looks again
                self._catch(hold, 10)
            return hold

    def keep(
        self, hold: Hold, far: socket.socket | None, error: int, ended: Ended | None = None
    ) -> bool:
        """See Relay.keep."""
        with self._lock:
            if self._holds.get(hold.key) is not hold or not self._waits(hold):
                return False
            hold.far, hold.ended, hold.gave_up = far, ended, None
            self._dials(hold, outcome_of(far) if far is not None and not error else error)
            with contextlib.suppress(OSError):  # _check() does it again
                self._proceed(hold)
            return True

    def begin(self, asked: Asked, far: socket.socket, to: Endpoint | str) -> int:
        """See Relay.begin."""
        far.setblocking(False)
        if isinstance(to, str):
            return connect_local(far, to)
        self._carrier.carry(asked, far)
        real = to.unmapped()
        mapped = far.family == socket.AF_INET6 and real.family == socket.AF_INET
        where = (f"::ffff:{real.host}", real.port) if mapped else real.as_python()
        return far.connect_ex(where)

    def _dialled(
        self,
        guest: socket.socket,
        address: bytes,
        target: Endpoint,
        far: socket.socket,
        ended: Ended | None,
        named: bool,
    ) -> int:
        error = outcome_of(far)
        if error > 0 and not fcntl.fcntl(guest.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK:
            far.close()
            return error
        with self._lock:
            if self._closed:
                far.close()
                return errno.ENETDOWN
            plain: Start = partial(_core.connect_start, guest.fileno())
            naming = called_as(guest, far, target, self._make)
            with naming if named else contextlib.nullcontext(plain) as start:
                begin = partial(start, address)
                if error == 0:
                    return self._fast(guest, begin, target, far, ended)
                # A program that does not wait gets EINPROGRESS first, even when the refusal is here already.
                hold = self._hold(guest, begin, target)
                if isinstance(hold, int):
                    far.close()
                    return hold
                hold.far, hold.ended = far, ended
                self._dials(hold, error)
                self._catch(hold, 10)
                return errno.EINPROGRESS

    def dialling(self) -> int:
        """Connections whose far side has not answered."""
        return len(self._holds)

    # ---- the guest's side; the lock is held ----

    def _listener(self, target: Endpoint) -> _Listener:
        listener = self._listeners.get(target)
        if listener is not None:
            self._listeners.move_to_end(target)
            return listener
        sock = self._make(target.family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if target.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(*options.freebind(target.family), 1)
            options.unpaced(sock)
            attach_filter(sock, self._filter)
            forced = False
            try:
                sock.bind(target.as_python())
                sock.listen(_BACKLOG)
            except OSError as e:
                if e.errno != errno.EADDRINUSE:
                    raise
                # The guest listens on this port at its wildcard address. A more specific listener is found before it,
                # and a socket in repair mode may be bound beside any other (SK_FORCE_REUSE, net/ipv4/tcp.c).
                forced = True
                sock.setsockopt(socket.IPPROTO_TCP, options.TCP_REPAIR, 1)
                if sock.getsockname()[1] == 0:
                    sock.bind(target.as_python())
                sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        listener = self._listeners[target] = _Listener(target, sock, cookie_of(sock), forced)
        self._forget_idle()
        return listener

    def _forget_idle(self) -> None:
        if len(self._listeners) <= _LISTENERS:
            return
        for target, listener in list(self._listeners.items())[:-1]:  # the last is wanted now
            if listener.idle:
                self._close_listener(target)
                if len(self._listeners) <= _LISTENERS:
                    return

    def _close_listener(self, target: Endpoint) -> None:
        listener = self._listeners.pop(target)
        self._gone.append(listener.cookie)
        self._loop.remove(listener.sock.fileno())
        listener.sock.close()

    def _fast(
        self,
        guest: socket.socket,
        begin: Callable[[int], int],
        target: Endpoint,
        far: socket.socket,
        ended: Ended | None,
    ) -> int:
        listener = self._listener(target)
        segments_like(listener.sock, far)
        guest.setsockopt(socket.SOL_SOCKET, SO_MARK, self._mark)
        try:
            error = begin(_FAST_WAIT_US)
        finally:
            guest.setsockopt(socket.SOL_SOCKET, SO_MARK, 0)  # the guest can read it
        if error not in (0, errno.EINPROGRESS):
            reset(far)
            self._tidy(listener)
            return error
        self._expect(listener, name_of(guest.getsockname()), far, ended)
        return error

    def _expect(
        self, listener: _Listener, name: Name, far: socket.socket, ended: Ended | None
    ) -> bool:
        """Pair the connection that comes from this name with the far socket; True when it has come already."""
        stale = listener.waiting.pop(name, None)
        if stale is not None and stale[0] is not far:
            reset(stale[0])
        listener.waiting[name] = (far, ended)
        self._accept(listener)
        if name not in listener.waiting:
            return True
        if not listener.watched:
            listener.watched = True
            self._loop.add(listener.sock.fileno(), IN, lambda _: self._accept(listener))
        return False

    def _accept(self, listener: _Listener) -> None:
        with self._lock:
            while listener.waiting and listener.sock.fileno() >= 0:
                try:
                    child, address = listener.sock.accept()
                except OSError as e:
                    if e.errno == errno.EAGAIN:
                        break
                    if e.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                        self._accept_later(listener)
                        return
                    continue  # a connection that went again
                found = listener.waiting.pop(name_of(address), None)
                if found is None:
                    reset(
                        child
                    )  # nobody of ours: its SYN was let through, so it was a hold that was given up
                    continue
                child.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
                if listener.forced:
                    child.setsockopt(socket.IPPROTO_TCP, options.TCP_REPAIR, options.TCP_REPAIR_OFF)
                    child.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._join(child, *found)
            if listener.watched and not listener.waiting:
                listener.watched = False
                self._loop.remove(listener.sock.fileno())
            self._tidy(listener)

    def _tidy(self, listener: _Listener) -> None:
        """On loopback an idle listener of ours, which stands for the host's, must not look like the guest's own."""
        known = self._listeners.get(listener.target) is listener
        if known and listener.idle and listener.target.host.is_loopback:
            self._close_listener(listener.target)

    def _accept_later(self, listener: _Listener) -> None:
        """No descriptor is free: the connection waits in the kernel until one is."""
        if listener.watched:
            self._loop.remove(listener.sock.fileno())
        listener.watched = True

        def again() -> None:
            with self._lock:
                if not self._closed and listener.sock.fileno() >= 0:
                    self._loop.add(listener.sock.fileno(), IN, lambda _: self._accept(listener))
                    self._accept(listener)

        self._loop.later(0.05, again)

    # ---- holds; the lock is held ----

    def _hold(
        self,
        guest: socket.socket,
        begin: Callable[[int], int],
        target: Endpoint,
    ) -> Hold | int:
        """Have the guest's socket wait, for whom nobody dials yet; the errno where it does not. Its SYN is still to be
        caught."""
        # Else those of the guest's own connections pile up. First: who goes on by it may be the listener's last.
        self._caught(target.host.version)
        listener = self._listener(target)
        error = begin(_HOLD_WAIT_US)
        if error != errno.EINPROGRESS:
            self._tidy(listener)
            return error
        own = Endpoint.from_python(guest.getsockname()).unmapped()
        hold = Hold(own, target, cookie_of(guest), None, listener, None)
        old = self._holds.get(hold.key)
        if old is not None:
            self._drop(old)
        self._holds[hold.key] = hold
        listener.users += 1
        if not self._checking:
            self._checking = True
            self._loop.later(_CHECK, self._check)
        return hold

    def _dials(self, hold: Hold, outcome: int) -> None:
        """Its far side was begun, with this outcome so far; -1 while that is open."""
        far = hold.far
        if outcome < 0 and far is not None:
            try:
                self._loop.add(far.fileno(), OUT, lambda _: self._far_event(hold))
                return
            except OSError as error:
                outcome = error.errno or errno.EIO
        self._answered(hold, outcome)

    def _catch(self, hold: Hold, tries: int) -> None:
        """Look for the SYN; loopback delivers it within connect(), unless the softirq was put off.

        If it was lost all the same, _check() finds the one that the guest's kernel repeats after a second.
        """
        if hold.syn is not None or self._holds.get(hold.key) is not hold:
            return
        self._caught(hold.target.host.version, hold)
        if hold.syn is not None:
            self._proceed(hold)
        elif tries:
            self._loop.later(0.001, lambda: self._catch_later(hold, tries - 1))

    def _caught(self, version: int, wanted: Hold | None = None) -> None:
        """Read what was captured, and go on with whom it belongs to, but the one that the caller goes on with."""
        for syn in self._wire.captured(version):
            found = self._holds.get((syn.source, syn.target))
            if found is not None and found.syn is None:
                found.syn = syn
                if found is not wanted:
                    self._proceed(found)

    def _catch_later(self, hold: Hold, tries: int) -> None:
        with self._lock:
            if not self._closed:
                self._catch(hold, tries)

    def _far_event(self, hold: Hold) -> None:
        with self._lock:
            if hold.stage is not _Stage.DIALLING or self._holds.get(hold.key) is not hold:
                return
            assert hold.far is not None
            error = outcome_of(hold.far)
            if error < 0:
                return
            self._loop.remove(hold.far.fileno())
            self._answered(hold, error)
            self._proceed(hold)

    @staticmethod
    def _answered(hold: Hold, error: int) -> None:
        hold.error = error
        if error == 0:
            hold.stage = _Stage.ANSWERED
            return
        hold.stage = _Stage.SILENT if error == errno.ETIMEDOUT else _Stage.REFUSED
        if hold.far is not None:
            hold.far.close()

    def _proceed(self, hold: Hold) -> None:
        """Do what the stage asks, once the SYN is caught."""
        if hold.syn is None:
            return
        if hold.stage is _Stage.ANSWERED and hold.far is not None:
            segments_like(hold.listener.sock, hold.far)
            self._wire.send(hold.syn.again(), hold.target)
            if self._expect(
                hold.listener, (str(hold.own.host), hold.own.port), hold.far, hold.ended
            ):
                self._forget(hold)
        elif hold.stage is _Stage.REFUSED:
            answer = hold.syn.answer(hold.error)
            if answer is not None:
                self._wire.send(answer, hold.own)
            waits = self._waits(hold)
            if self._wire.blind or not waits:
                self._forget(hold)

    def _check(self) -> None:
        """Let go of what guests have given up; say again what may have been lost."""
        with self._lock:
            self._checking = False
            for hold in list(self._holds.values()):
                name = (str(hold.own.host), hold.own.port)
                hold.checks += hold.stage is not _Stage.DIALLING
                if (
                    hold.stage is _Stage.ANSWERED
                    and hold.syn is not None
                    and name not in hold.listener.waiting
                ):
                    self._forget(hold)
                elif not self._waits(hold):
                    # It may just have been established, with the accept still to come.
                    self._accept(hold.listener)
                    self._drop(hold)
                elif self._wire.blind and hold.checks == _CHECKS_BLIND:
                    self._drop(hold)
                elif hold.syn is None:
                    self._catch(hold, 0)
                else:
                    self._proceed(hold)
            if self._holds and not self._closed:
                self._checking = True
                self._loop.later(_CHECK, self._check)

    def _tell(self) -> None:
        """Tell those whose hold was dropped. Without the lock."""
        while self._given_up:
            try:
                gave_up = self._given_up.popleft()
            except IndexError:  # another thread told it
                return
            gave_up()

    def _waits(self, hold: Hold) -> bool:
        return self._wire.state(hold.own, hold.target, hold.cookie) == TCP_SYN_SENT

    def _forget(self, hold: Hold) -> None:
        if self._holds.pop(hold.key, None) is hold:
            hold.listener.users -= 1
            self._tidy(hold.listener)

    def _drop(self, hold: Hold) -> None:
        self._forget(hold)
        if hold.gave_up is not None:
            self._given_up.append(hold.gave_up)
            self._loop.later(0, self._tell)  # without our lock
        if hold.far is None or hold.far.fileno() < 0:
            return  # not there yet, closed, or the mover's
        hold.listener.waiting.pop((str(hold.own.host), hold.own.port), None)
        self._loop.remove(hold.far.fileno())
        reset(hold.far)

    # ---- for the relay ----

    def release_port(self, port: int) -> None:
        """See Relay.release_port."""
        with self._lock:
            for target, listener in list(self._listeners.items()):
                if target.port == port and listener.idle:
                    self._close_listener(target)

    @contextlib.contextmanager
    def on_device(self, port: int) -> Iterator[None]:
        """See Relay.on_device."""
        device = socket.SOL_SOCKET, options.SO_BINDTOIFINDEX, LOOPBACK
        with self._lock, contextlib.ExitStack() as until:
            for target, listener in self._listeners.items():
                if target.port == port:
                    until.enter_context(options.temporarily(listener.sock, *device))
            yield

    def stands_for(self, cookie: int) -> bool:
        """See Relay.stands_for."""
        with self._lock:
            return cookie in self._gone or any(
                listener.cookie == cookie for listener in self._listeners.values()
            )

    def close(self) -> None:
        """Give up every hold and listener; connect() gives ENETDOWN from now on. Called once, before the loop stops."""
        with self._lock:
            self._closed = True
            for hold in list(self._holds.values()):
                self._drop(hold)
            for target, listener in list(self._listeners.items()):
                for far, _ in listener.waiting.values():
                    reset(far)
                listener.waiting.clear()
                self._close_listener(target)
            self._wire.close()
        self._tell()
