"""The frontend's side between Xen domains: `xen:`, or `xen:N` for device/pvcalls/N of this domain.

The toolstack makes the device (`pvcalls=["backend=DOMAIN"]` in a domain's configuration, xl.cfg(5)); its directory in
xenstore names the backend's domain and directory. A session takes the device over from whichever had it before, be it
of another process or of this one; the earlier one writes nothing there any more.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import select
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from xensock.transport import xen_events
from xensock.transport.base import Nodes, TransportError
from xensock.transport.xen_memory import Grants, Shared
from xensock.transport.xen_store import Store
from xensock.wire import store as nodes_of
from xensock.wire.states import State, seen

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.transport.xen_events import XenEvent

MOST_NODES = 256
OWNER = "xensock-session"
"""Our node that says which session has the device: a session writes only while its own word is there."""
GRANT_LIMIT = 65536
"""Pages that the kernel is asked to let processes grant; its own limit, 1,024, is reached by 31 connections."""
_GRANT_LIMIT = Path("/sys/module/xen_gntalloc/parameters/limit")

_CHOICES = (
    "request-",
    nodes_of.RING_REF,
    nodes_of.RING_PAGE_ORDER,
    nodes_of.PORT,
    nodes_of.VERSION,
)

log = logging.getLogger("xensock.transport")


def connect(device: int, *, timeout: float | None = 10.0) -> XenSession:
    """Take the device. Raises OSError: ENODEV (no such device), EBUSY (another takes it now), TransportError,
    TimeoutError where the backend does not answer."""
    store = Store()
    try:
        front = f"{store.path_of(store.own_domain())}/device/pvcalls/{device}"
        back = store.read(f"{front}/backend")
        domain = store.read(f"{front}/backend-id")
        if back is None or domain is None or not domain.isdigit():
            raise OSError(
                errno.ENODEV, f"this domain has no device pvcalls/{device}", f"xen:{device}"
            )
        _raise_limit()
        owner = secrets.token_hex(8)
        try:
            _begin_anew(store, front, back, owner, timeout)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            raise OSError(errno.EBUSY, "another takes this device now", f"xen:{device}") from None
        return XenSession(store, front, back, int(domain), owner)
    except BaseException:
        store.close()
        raise


def _raise_limit() -> None:
    with contextlib.suppress(OSError, ValueError):  # other frontends, or no right to
        if int(_GRANT_LIMIT.read_text()) < GRANT_LIMIT:
            _GRANT_LIMIT.write_text(str(GRANT_LIMIT))


def _begin_anew(store: Store, front: str, back: str, owner: str, timeout: float | None) -> None:
    """Bring both sides back to where a session begins, from wherever the last one ended."""
    deadline = None if timeout is None else time.monotonic() + timeout

    def state(path: str) -> State:
        return seen(store.read(f"{path}/{nodes_of.STATE}") or "")

    def until(*wanted: State) -> None:
        poll = select.poll()
        poll.register(store.fileno(), select.POLLIN)
        while state(back) not in wanted:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(errno.ETIMEDOUT, "no backend serves this domain's device", back)
            if poll.poll(None if left is None else left * 1000):
                store.changed()

    def become(word: State) -> None:
        store.write(front, {nodes_of.STATE: str(int(word))}, only_if=(OWNER, owner))

    store.watch(f"{back}/{nodes_of.STATE}", "state")
    try:
        # From here on an earlier session that lives still, in whatever it is, cannot write over what is ours.
        store.write(front, {OWNER: owner})
        if state(front) in (State.INITIALISED, State.CONNECTED, State.CLOSING):
            # A process that had the device left without a word, or another still has it.
            become(State.CLOSED)
            if state(back) in (State.INITIALISED, State.CONNECTED, State.CLOSING):
                until(State.CLOSED, State.CLOSING, State.UNKNOWN)
        # What an earlier frontend asked for is not what this one wants.
        store.remove(front, [name for name in store.names(front) if name.startswith(_CHOICES)])
        become(State.INITIALISING)
        until(State.INIT_WAIT)
    finally:
        store.unwatch(f"{back}/{nodes_of.STATE}", "state")


class XenSession:
    """A device of this domain (`transport.base.FrontSession`)."""

    def __init__(self, store: Store, front: str, back: str, domain: int, owner: str) -> None:
        self._store = store
        self._mine = (OWNER, owner)
        self._front = front
        self._back = back
        self._domain = domain
        self._pid = os.getpid()
        self._grants = Grants(domain)
        try:
            self._ports = xen_events.ports()
        except BaseException:
            self._grants.close()
            raise
        self._changed = threading.Condition()
        self._error: TransportError | None = None
        self._callback: Callable[[Nodes], None] | None = None
        self._nodes: dict[str, str] = store.tree(back, MOST_NODES)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        store.watch(back, "back")
        self._reader = threading.Thread(target=self._read, name="xensock-store", daemon=True)
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

    def allocate(self, pages: int) -> Shared:
        """Grant pages."""
        self._check()
        return self._grants.allocate(pages)

    def event(self) -> XenEvent:
        """Make an event channel."""
        self._check()
        return self._ports.unbound(self._domain)

    def write(self, nodes: Nodes) -> None:
        """Write nodes of ours."""
        self._check()
        try:
            self._store.write(self._front, nodes, only_if=self._mine)
        except OSError as error:
            taken = error.errno == errno.ESTALE
            why = "another session took the device" if taken else "the device is gone"
            self._end(errno.ECONNRESET, why if taken else f"{why}: {error.strerror}")
            self._check()

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
        """xenstore's descriptor."""
        return self._store.fileno()

    def close(self) -> None:
        """End the session."""
        if os.getpid() != self._pid:
            raise RuntimeError("this XenSock session belongs to the parent process")
        with self._changed:
            first = self._error is None
        self._end(errno.ENOTCONN, "the session was closed")
        if threading.current_thread() is not self._reader:
            self._reader.join()
        with self._changed:
            wake, self._wake = self._wake, -1
        if wake < 0:
            return
        if first:
            # Whoever takes the device next finds it at rest; who has taken it is left alone.
            closed = {nodes_of.STATE: str(int(State.CLOSED))}
            with contextlib.suppress(OSError):
                self._store.write(self._front, closed, only_if=self._mine)
        os.close(wake)
        self._grants.close()
        self._ports.close()
        self._store.close()

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError("this XenSock session belongs to the parent process: make another")
        if self._error is not None:
            raise TransportError(self._error.errno, self._error.strerror)

    def _end(self, error: int, reason: str) -> None:
        with self._changed:
            if self._error is None:
                self._error = TransportError(error, reason)
            self._changed.notify_all()
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def _read(self) -> None:
        """The session's own thread."""
        poll = select.poll()
        poll.register(self._store.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while self._error is None:
            poll.poll()
            if self._error is None and self._store.changed() is not None:
                self._look()
        self._tell()

    def _look(self) -> None:
        try:
            nodes = self._store.tree(self._back, MOST_NODES)
        except OSError as error:
            self._end(errno.ECONNRESET, f"the device is gone: {error.strerror}")
            return
        with self._changed:
            before, self._nodes = self._nodes, nodes
            self._changed.notify_all()
        if nodes_of.STATE not in nodes:
            self._end(errno.ECONNRESET, "the device is gone")
        elif nodes != before:
            self._tell()

    def _tell(self) -> None:
        with self._changed:
            callback = self._callback
        if callback is not None:
            try:
                callback(self.nodes)
            except Exception:
                log.exception("a callback of the store failed")
