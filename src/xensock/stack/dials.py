"""Calls that another backend is asked for on its threads, in their order; who gives up leaves the queue at once.

An executor's own queue keeps what was cancelled until a thread comes to it. While a backend hangs none does, and a
guest that connects and gives up again and again would make it grow without end.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor


class Dials:
    """Those of one backend: `most` are under way at once, on threads of the executor that `threads` tells. Methods may
    be called from any thread."""

    def __init__(self, threads: Callable[[], Executor], most: int) -> None:
        self._threads = threads
        self._most = most
        self._lock = threading.Lock()  # of the two below
        self._queue: OrderedDict[Future[Any], tuple[Callable[[], Any], Any]] = OrderedDict()
        self._running = 0

    def begin(self, work: Callable[[], Any], otherwise: Any) -> Future[Any]:
        """What `work` comes to; `otherwise` where the executor is shut down first. Raises RuntimeError where it was."""
        dial: Future[Any] = Future()
        with self._lock:
            self._queue[dial] = work, otherwise
            if self._running == self._most:
                return dial
            self._running += 1
        try:
            self._next()
        except RuntimeError:
            self.give_up(dial)
            raise
        return dial

    def give_up(self, dial: Future[Any]) -> bool:
        """Nobody wants to know any more: it is cancelled, unless it is under way, when False is returned."""
        with self._lock:
            self._queue.pop(dial, None)
        return dial.cancel()

    def waiting(self) -> int:
        """How many are not under way yet."""
        return len(self._queue)

    def _next(self) -> None:
        """One turn of a thread; what else comes to the executor has one in between. Raises RuntimeError."""
        try:
            self._threads().submit(self._run)
        except RuntimeError:
            self._end()
            raise

    def _end(self) -> None:
        """The executor was shut down."""
        with self._lock:
            self._running -= 1
            left = list(self._queue.items())
            self._queue.clear()
        for dial, (_, otherwise) in left:
            if dial.set_running_or_notify_cancel():
                dial.set_result(otherwise)

    def _run(self) -> None:
        with self._lock:
            first = self._queue.popitem(last=False) if self._queue else None
        if first is not None and first[0].set_running_or_notify_cancel():
            dial, (work, _) = first
            try:
                found = work()
            except BaseException as error:
                dial.set_exception(error)
            else:
                dial.set_result(found)
        with self._lock:
            if not self._queue:
                self._running -= 1
                return
        try:
            self._next()
        except RuntimeError:
            return  # what was left has its end
