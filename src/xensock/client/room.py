"""Room at the backend: a socket that its program has closed counts there until its release is on its way.

Theory of operation: that a program closed its end is seen by the mover's threads and the link's loop, which a busy
machine lets wait. So ENFILE (socket(2)) is believed when nobody is on the way out; before that the releases are
waited for, and each is a reason to ask again. The backend carries commands out in order: a release that was sent
before a SOCKET has made room for it.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xensock.loop import Loop

GONE_S = 30.0  # what was closed is released however long it takes, unless something is broken
HALF_S = 1.0  # TCP that was ended one way may be closed, or wait for an answer as long as it likes
_LOOK_S = 0.05


class Leaving(IntEnum):
    """How far a socket is on its way out; numbers are those of _core.mover_leaving()."""

    STAYS = 0
    HALF = 1
    GONE = 2


class Departures:
    """The releases of one link. For any thread."""

    def __init__(self, leaving: Callable[[], Leaving]) -> None:
        """`leaving`: the furthest that any socket is on its way out."""
        self._leaving = leaving
        self._changed = threading.Condition()
        self._under_way = 0
        self._done = 0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A socket is released meanwhile."""
        with self._changed:
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._done += 1
                self._changed.notify_all()

    def wait_for_room(self, make: Callable[[], object], loop: Loop) -> None:
        """Call make(), and again as sockets depart while it raises ENFILE. On the loop's own thread, which releases
        them, nothing is waited for. Raises OSError: what make() does."""
        start = time.monotonic()
        while True:
            before = self._done
            try:
                make()
            except OSError as error:
                if error.errno != errno.ENFILE or loop.is_current():
                    raise
                if not self._departed(before, start):
                    raise
            else:
                return

    def _departed(self, before: int, start: float) -> bool:
        """Wait for a release beyond that count; False when none is to be expected."""
        while True:
            with self._changed:
                if self._done != before:
                    return time.monotonic() < start + GONE_S
                leaving = Leaving.GONE if self._under_way else None
            if leaving is None:
                leaving = self._leaving()
            patience = {Leaving.STAYS: 0.0, Leaving.HALF: HALF_S, Leaving.GONE: GONE_S}[leaving]
            left = start + patience - time.monotonic()
            with self._changed:
                if left <= 0:
                    return self._done != before  # it may have gone while it was looked for
                self._changed.wait_for(lambda: self._done != before, min(left, _LOOK_S))
