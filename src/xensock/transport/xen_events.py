"""Event channels between Xen domains, as pairs of eventfds.

One handle of /dev/xen/evtchn carries all event channels of this process. A thread of the C core (native/core/
evbridge.c) passes their events on to eventfds, which movers and loops know to wait for, and notifies the other domain
when one of ours was written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from typing import TYPE_CHECKING

from xensock import _core
from xensock.transport import local_events, xen_libs

if TYPE_CHECKING:
    from collections.abc import Callable


class XenEvent:
    """Our side of an event channel (`transport.base.Event`). `port` is the one that commands name: the frontend's."""

    def __init__(self, ports: Ports, local: int, domain: int, named: int) -> None:
        self._ports: Ports | None = ports
        self._local = local
        self.port = named
        self.when_closed: Callable[[], None] = lambda: None
        self._notify_fd = self._wait_fd = -1
        try:
            self._notify_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._wait_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            ports.carry(local, domain, self._notify_fd, self._wait_fd)
        except BaseException:
            self.close()
            raise

    @property
    def notify_fd(self) -> int:
        """Written to wake the other domain; -1 after `close()`."""
        return self._notify_fd

    @property
    def wait_fd(self) -> int:
        """Readable after the other domain notified; -1 after `close()`."""
        return self._wait_fd

    def notify(self) -> None:
        """Wake the other domain, by the shortest way."""
        ports = self._ports
        if ports is not None:
            ports.notify(self._local)

    def clear(self) -> bool:
        """Forget events received."""
        return self._wait_fd >= 0 and local_events.clear(self._wait_fd)

    def close(self) -> None:
        """Unbind the channel."""
        ports, self._ports = self._ports, None
        if ports is not None:
            ports.unbind(self._local)
            for fd in (self._notify_fd, self._wait_fd):
                if fd >= 0:
                    os.close(fd)
            self._notify_fd = self._wait_fd = -1
            self.when_closed()

    def __del__(self) -> None:
        self.close()


class Ports:
    """All event channels of this process with other domains. Methods may be called from any thread."""

    def __init__(self) -> None:
        """Raises OSError, TransportError (ENOENT: no libraries)."""
        self._library = xen_libs.events()
        self._handle = self._library.xenevtchn_open(None, 0)
        if not self._handle:
            raise xen_libs.failure("event channels cannot be used (/dev/xen/evtchn)")
        self._lock = threading.Lock()
        self._bridge = _core.evbridge_open(self._library.xenevtchn_fd(self._handle))
        self._users = 1

    def unbound(self, domain: int) -> XenEvent:
        """A new event channel that a domain may bind: a frontend's. Raises OSError (ENOSPC: no more ports)."""
        return self._event(self._library.xenevtchn_bind_unbound_port, domain)

    def bound(self, domain: int, port: int) -> XenEvent:
        """Our side of another domain's event channel: a backend's. Raises OSError (EINVAL: it has no such port)."""
        return self._event(self._library.xenevtchn_bind_interdomain, domain, port)

    def _event(self, bind: object, *arguments: int) -> XenEvent:
        with self._lock:
            if not self._handle:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            local = bind(self._handle, *arguments)  # type: ignore[operator]
            if local < 0:
                raise xen_libs.failure("event channel")
        # A frontend's own number is what commands name, a backend's is the other's.
        named = arguments[1] if len(arguments) > 1 else local
        return XenEvent(self, local, arguments[0], named)

    def carry(self, local: int, domain: int, notify_fd: int, wait_fd: int) -> None:
        """Let the bridge carry events of a port, with that domain, from and to eventfds."""
        _core.evbridge_add(self._bridge, local, domain, notify_fd, wait_fd)

    def notify(self, local: int) -> None:
        """Send the event. Who is gone needs none."""
        with self._lock:
            if self._handle:
                self._library.xenevtchn_notify(self._handle, local)

    def unbind(self, local: int) -> None:
        """No more events of that port, in either direction."""
        with contextlib.suppress(ValueError, OSError):
            _core.evbridge_remove(self._bridge, local)
        with self._lock:
            if self._handle:
                self._library.xenevtchn_unbind(self._handle, local)

    def share(self) -> Ports:
        """One more who will call `close()`."""
        with self._lock:
            self._users += 1
        return self

    def close(self) -> None:
        """The last of its users ends all event channels."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            handle, self._handle = self._handle, None
        _core.evbridge_close(self._bridge)
        self._library.xenevtchn_close(handle)


_shared: Ports | None = None
_sharing = threading.Lock()


def ports() -> Ports:
    """The process's ports, to be closed by who asked. Raises OSError."""
    global _shared
    with _sharing:
        if _shared is not None and _shared._handle:
            return _shared.share()
        _shared = Ports()
        return _shared
