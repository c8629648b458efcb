"""Questions to other backends, which may be slow to answer: each on a thread, so that nobody else waits.

Those who are asked about one thing get one answer. Whom a question goes to has threads of its own: a backend that
hangs, or one that waits for another that hangs, holds up what goes there, and of that no more than it must.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from concurrent.futures import Future

    from xensock.loop import Loop

Answer = TypeVar("Answer")


class Afar:
    """The questions of one guest. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[Hashable, ThreadPoolExecutor] = {}
        self._asked: dict[tuple[Hashable, Hashable], Future[Any]] = {}
        self._closed = False
        self._untold = 0
        self._told = threading.Condition()  # of _untold

    def ask(
        self, whom: Hashable, about: Hashable, question: Callable[[], Answer]
    ) -> Future[Answer]:
        """What question() comes to; that of another who asks the same `about` the same thing at this time. Raises
        RuntimeError after `close`."""
        key = whom, about
        with self._lock:
            answer = self._asked.get(key)
            if answer is not None:
                return answer
            if self._closed:
                raise RuntimeError("closed")
            if whom not in self._pools:  # their threads start with the first calls
                # Here: it brings the client, which a run without other backends does not need, nor its start-up.
                from xensock.stack.upstream import LOOKS

                self._pools[whom] = ThreadPoolExecutor(LOOKS, "xs-udp-afar")
            answer = self._asked[key] = self._pools[whom].submit(question)
        answer.add_done_callback(lambda _: self._answered(key))
        return answer

    def tell(
        self,
        loop: Loop,
        whom: Hashable,
        about: Hashable,
        question: Callable[[], Answer],
        then: Callable[[Future[Answer]], None],
    ) -> None:
        """As `ask`, and then(the answer) on the thread of `loop`; nothing after `close`."""

        def told(answer: Future[Answer]) -> None:
            try:
                then(answer)
            finally:
                self._count(-1)

        self._count(1)
        try:
            answer = self.ask(whom, about, question)
        except RuntimeError:
            self._count(-1)
        else:
            answer.add_done_callback(lambda answer: loop.later(0, lambda: told(answer)))

    def _count(self, more: int) -> None:
        with self._told:
            self._untold += more
            self._told.notify_all()

    def settle(self, seconds: float) -> bool:
        """Wait until everything that was to be told is, for so long at most; whether it is."""
        with self._told:
            return self._told.wait_for(lambda: not self._untold, seconds)

    def _answered(self, key: tuple[Hashable, Hashable]) -> None:
        with self._lock:
            self._asked.pop(key, None)

    def close(self) -> None:
        """Ask nothing more. What is under way ends with the backends' links."""
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
        for pool in pools:
            pool.shutdown(wait=False, cancel_futures=True)
