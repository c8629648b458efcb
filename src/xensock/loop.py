"""One thread that serves descriptors, timers and calls from other threads: the relay's, the own sockets'."""

from __future__ import annotations

import heapq
import itertools
import logging
import os
import select
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

IN, OUT = select.EPOLLIN, select.EPOLLOUT
_log = logging.getLogger(__name__)


class Loop:
    """Runs handlers one at a time on a thread of its own. A handler must not wait for anything.

    A handler that raises is logged with its traceback and the loop goes on: one connection's fault is not the
    others'. All methods may be called from any thread.
    """

    def __init__(self, name: str) -> None:
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._lock = threading.Lock()
        # A number stays its file's while it is unregistered. Reentrant: garbage may be collected meanwhile.
        self._registering = threading.RLock()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._stopping = False
        self._epoll.register(self._wake, IN)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def add(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Call handler(events) whenever the descriptor is ready. It must be removed before it is closed."""
        with self._registering:
            self._handlers[fd] = handler
            self._epoll.register(fd, events)

    def remove(self, fd: int, handler: Callable[[int], None] | None = None) -> bool:
        """Undo add(); whether it did. A descriptor that is not watched, or not by this handler, is fine."""
        with self._registering:
            found = self._handlers.get(fd)
            if found is None or (handler is not None and found is not handler):
                return False
            del self._handlers[fd]
            self._epoll.unregister(fd)
            return True

    def is_current(self) -> bool:
        """Whether it is the loop's own thread that asks."""
        return threading.current_thread() is self._thread

    def later(self, delay: float, call: Callable[[], None]) -> None:
        """Call once, after `delay` seconds; 0 means as soon as the thread is free. Not after `stop`."""
        with self._lock:
            if self._stopping:
                return
            heapq.heappush(self._timers, (time.monotonic() + delay, next(self._order), call))
            if self._timers[0][2] is call:
                os.eventfd_write(self._wake, 1)

    def stop(self) -> None:
        """End the thread. What is still registered stays its owner's to close."""
        with self._lock:
            self._stopping = True
            os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._stopping:
            for fd, events in self._epoll.poll(self._timeout()):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                    continue
                handler = self._handlers.get(
                    fd
                )  # an earlier handler of this round may have removed it
                if handler is not None:
                    self._call(lambda handler=handler, events=events: handler(events))  # type: ignore[misc]
            for call in self._due():
                self._call(call)

    def _timeout(self) -> float | None:
        with self._lock:
            return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _due(self) -> list[Callable[[], None]]:
        due = []
        with self._lock:
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                due.append(heapq.heappop(self._timers)[2])
        return due

    @staticmethod
    def _call(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            _log.exception("a handler failed")
