"""The calls that were refused last: remembered although nobody keeps records, for whoever asks why something fails."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.record import Record

KEPT = 16


class Denials:
    """The last KEPT refusals, those that differ in what was refused to whom. Any thread may call it.

    `tell` takes each that is not among them already. Of those that the core repeats by itself only the first is seen
    while nobody keeps records.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], Record] = {}  # the latest at the end
        self._lock = threading.Lock()
        self.tell: Callable[[Record], None] | None = None

    def note(self, record: Record) -> None:
        """Remember it if it is of a refused call."""
        if record.decision != "deny" or record.verb == "close":
            return
        key = (record.guest, record.program, record.verb, record.target, record.rule)
        with self._lock:
            new = self._last.pop(key, None) is None
            self._last[key] = record
            if len(self._last) > KEPT:
                del self._last[next(iter(self._last))]
        if new and self.tell is not None:
            self.tell(record)

    def last(self, guest: str | None = None) -> list[Record]:
        """The latest first; of one guest, or of all."""
        with self._lock:
            kept = list(self._last.values())
        return [each for each in reversed(kept) if guest is None or each.guest == guest]
