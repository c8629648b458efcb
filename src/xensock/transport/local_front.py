"""The frontend's side of the local transport: a unix socket, memory and eventfds of our own making."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import threading
import time
import weakref
from typing import TYPE_CHECKING

from xensock.transport import local_events, local_packets
from xensock.transport.base import Limits, Nodes, ProtocolError, TransportError
from xensock.transport.pages import Pool, Run
from xensock.wire import local
from xensock.wire.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SEND_TIMEOUT = 30.0
"""Seconds that a backend may take to read what we send, before it counts as lost."""

log = logging.getLogger("xensock.transport")
_sessions: weakref.WeakSet[LocalSession] = weakref.WeakSet()


def connect(path: str, *, name: str = "", timeout: float | None = 10.0) -> LocalSession:
    """Reach the backend that listens at `path`. Raises what `transport.url.connect` does."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        _set_timeout(sock, socket.SO_SNDTIMEO, timeout)
        try:
            sock.connect(path)
        except BlockingIOError:
            raise TimeoutError(errno.ETIMEDOUT, "the backend does not accept", path) from None
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from None
        try:
            local_packets.send(sock, local.Hello(name or f"pid-{os.getpid()}"))
        except BrokenPipeError:
            pass  # what it sent before it closed says why
        except WireError as error:
            raise ValueError(str(error)) from None
        _welcomed(sock, path, timeout)
        _set_timeout(sock, socket.SO_SNDTIMEO, SEND_TIMEOUT)
        return LocalSession(sock)
    except BaseException:
        sock.close()
        raise


def _set_timeout(sock: socket.socket, option: int, seconds: float | None) -> None:
    whole = 0 if seconds is None else max(int(seconds * 1_000_000), 1)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", *divmod(whole, 1_000_000)))


def _welcomed(sock: socket.socket, path: str, timeout: float | None) -> None:
    """Wait until the backend wants us."""
    _set_timeout(sock, socket.SO_RCVTIMEO, timeout)
    try:
        message = _receive(sock)
    except BlockingIOError:
        raise TimeoutError(errno.ETIMEDOUT, "the backend does not answer", path) from None
    except ProtocolError as error:
        raise TransportError(errno.EPROTO, str(error), path) from None
    if message is None:
        raise TransportError(errno.ECONNRESET, "the backend closed the connection", path)
    if isinstance(message, local.Goodbye):
        raise TransportError(errno.ECONNREFUSED, f"refused by the backend: {message.reason}", path)
    if not isinstance(message, local.Welcome) or message.version != local.VERSION:
        raise TransportError(errno.EPROTO, "the backend does not speak version 1 of local", path)
    _set_timeout(sock, socket.SO_RCVTIMEO, None)


def _receive(sock: socket.socket) -> local.BackMessage | None:
    """The backend's next message, None at the end. Raises ProtocolError, OSError."""
    try:
        try:
            packet, fds = local_packets.receive(sock)
        except ConnectionResetError:
            # It closed before it read all of ours. That is told first, and only once; what it had
            # sent, a Goodbye perhaps, comes after.
            packet, fds = local_packets.receive(sock)
    except ConnectionError:
        return None
    if fds:
        local_packets.close_all(fds)
        raise ProtocolError("the backend sent descriptors")
    if not packet:
        return None
    try:
        return local.decode_back(packet)
    except WireError as error:
        raise ProtocolError(str(error)) from None


class LocalEvent:
    """Our side of an event channel (`transport.base.Event`)."""

    def __init__(self, session: LocalSession, port: int, fds: tuple[int, int]) -> None:
        self._session = session
        self._fds: tuple[int, int] | None = fds
        self._lock = threading.Lock()
        self.port = port

    @property
    def notify_fd(self) -> int:
        """The eventfd that wakes the backend; -1 after `close()`."""
        fds = self._fds
        return -1 if fds is None else fds[0]

    @property
    def wait_fd(self) -> int:
        """The eventfd that the backend wakes us by; -1 after `close()`."""
        fds = self._fds
        return -1 if fds is None else fds[1]

    def notify(self) -> None:
        """Wake the backend."""
        with self._lock:
            if self._fds is not None:
                local_events.notify(self._fds[0])

    def clear(self) -> bool:
        """Forget its events."""
        with self._lock:
            return self._fds is not None and local_events.clear(self._fds[1])

    def close(self) -> None:
        """Withdraw the channel."""
        with self._lock:
            fds, self._fds = self._fds, None
        if fds is not None:
            local_packets.close_all(fds)
            self._session.forget_port(self.port)

    def __del__(self) -> None:
        # Nobody can name it any more. Locks may be held here: the backend is not told.
        if self._fds is not None:
            local_packets.close_all(self._fds)


class LocalSession:
    """A connection to a backend on this machine (`transport.base.FrontSession`)."""

    def __init__(self, sock: socket.socket, limits: Limits | None = None) -> None:
        self._sock = sock
        self._pid = os.getpid()
        self._limits = Limits() if limits is None else limits
        self._pool = Pool(self._grant, self._withdraw, self._limits)
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._nodes: dict[str, str] = {}
        self._error: TransportError | None = None
        self._callback: Callable[[Nodes], None] | None = None
        # A message of a second thread may overtake the first one's: ports are numbered in order.
        self._ports = threading.Lock()
        self._free_ports: list[int] = []
        self._open_ports: set[int] = set()
        _sessions.add(self)
        self._reader = threading.Thread(
            target=_read, args=(self,), name="xensock-store", daemon=True
        )
        self._reader.start()

    @property
    def nodes(self) -> Nodes:
        """The backend's nodes."""
        with self._changed:
            return dict(self._nodes)

    @property
    def error(self) -> TransportError | None:
        """Why it is over."""
        return self._error

    def allocate(self, pages: int) -> Run:
        """Grant pages."""
        self._check()
        return self._pool.allocate(pages)

    def event(self) -> LocalEvent:
        """Make an event channel."""
        self._check()
        fds: list[int] = []
        with self._ports:
            if len(self._open_ports) >= self._limits.ports:
                raise OSError(errno.ENOSPC, "the session has all the event channels it may have")
            port = self._free_ports.pop() if self._free_ports else len(self._open_ports) + 1
            self._open_ports.add(port)
        try:
            fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            fds.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._send(local.Event(port), fds)
        except BaseException:
            local_packets.close_all(fds)
            self._free_port(port)
            raise
        return LocalEvent(self, port, (fds[0], fds[1]))

    def forget_port(self, port: int) -> None:
        """An event channel of ours was closed."""
        if os.getpid() != self._pid:
            return
        with contextlib.suppress(TransportError):
            self._send(local.Unevent(port))
        self._free_port(port)

    def write(self, nodes: Nodes) -> None:
        """Write nodes of ours."""
        self._check()
        self._send(local.Write(dict(nodes)))

    def wait_for(self, predicate: Callable[[Nodes], bool], timeout: float | None = None) -> Nodes:
        """Wait for nodes of the backend."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not predicate(dict(self._nodes)):
                self._check()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError(errno.ETIMEDOUT, "the backend does not answer")
                self._changed.wait(left)
            return dict(self._nodes)

    def on_change(self, callback: Callable[[Nodes], None]) -> None:
        """Be told of changes."""
        with self._changed:
            self._callback = callback
            over = self._error is not None
        if over:
            callback(self.nodes)

    def fileno(self) -> int:
        """The socket; -1 after `close()`."""
        return self._sock.fileno()

    def close(self) -> None:
        """End the session."""
        if os.getpid() != self._pid:
            raise RuntimeError("this XenSock session belongs to the parent process")
        self._end(errno.ENOTCONN, "the session was closed")
        if threading.current_thread() is not self._reader:
            self._reader.join()
        with self._sending:
            self._sock.close()
        self._pool.close()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("this XenSock session belongs to the parent process: make another")
        if self._error is not None:
            raise TransportError(self._error.errno, self._error.strerror)

    def _free_port(self, port: int) -> None:
        with self._ports:
            self._open_ports.discard(port)
            self._free_ports.append(port)

    def _grant(self, first: int, pages: int, fd: int) -> None:
        self._send(local.Memory(first, pages), (fd,))

    def _withdraw(self, first: int) -> None:
        self._send(local.Unmap(first))

    def _send(self, message: local.Message, fds: Sequence[int] = ()) -> None:
        deadline = time.monotonic() + SEND_TIMEOUT
        with self._sending:
            while True:
                self._check()
                try:
                    local_packets.send(self._sock, message, fds)
                    return
                except WireError as error:
                    raise ValueError(str(error)) from None
                except OSError as error:
                    # unix(7): descriptors under way count against RLIMIT_NOFILE of their sender.
                    if error.errno == errno.ETOOMANYREFS and time.monotonic() < deadline:
                        time.sleep(0.001)
                        continue
                    if isinstance(error, BlockingIOError):
                        self._end(errno.ETIMEDOUT, "the backend does not read")
                    else:
                        self._end(errno.ECONNRESET, "the backend is gone")
                self._check()

    def _end(self, error: int, reason: str) -> None:
        """The first reason counts. The reader thread says it to whoever waits."""
        with self._changed:
            if self._error is None:
                self._error = TransportError(error, reason)
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def take(self) -> bool:
        """Take in the backend's next message; False at the end. The reader thread's."""
        try:
            message = _receive(self._sock)
        except (ProtocolError, OSError) as error:
            self._end(errno.EPROTO, f"the backend broke the rules: {error}")
            message = None
        match message:
            case local.Nodes(nodes):
                with self._changed:
                    self._nodes.update(nodes)
                    self._changed.notify_all()
                    callback = self._callback
                self._tell(callback)
                return True
            case local.Welcome():
                return True  # of a backend that took over when another had just said so
            case local.Goodbye(reason):
                self._end(errno.ECONNRESET, f"the backend ended the session: {reason}")
            case _:
                self._end(errno.ECONNRESET, "the backend is gone")
        with self._changed:
            callback = self._callback
        self._tell(callback)
        return False

    def _tell(self, callback: Callable[[Nodes], None] | None) -> None:
        if callback is not None:
            try:
                callback(self.nodes)
            except Exception:
                log.exception("a callback of the store failed")

    def abandon(self) -> None:
        """In a child of fork(2): let go of the descriptors, so that the parent's end is seen."""
        with contextlib.suppress(OSError):
            self._sock.close()
        self._pool.abandon()


def _read(session: LocalSession) -> None:
    while session.take():
        pass


def _abandon_all() -> None:
    for session in list(_sessions):
        session.abandon()


os.register_at_fork(after_in_child=_abandon_all)
