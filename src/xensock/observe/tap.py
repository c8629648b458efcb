"""Where records go: to whoever keeps or watches them now."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from xensock.observe.denials import Denials

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.record import Record

    Take = Callable[[bytes, int], None]


class Tap:
    """Passes each record to every sink there is. Sinks come and go while calls are made; any thread may call it.

    `denials` has the last refused ones, whoever else wants records.
    """

    def __init__(self) -> None:
        self.denials = Denials()
        self._sinks: tuple[tuple[Callable[[Record], None], bool, Take | None], ...] = ()
        self._watchers: list[Callable[[], None]] = []
        self._lock = threading.RLock()

    @property
    def active(self) -> bool:
        """Whether anybody wants records; what only they need, need not be found out otherwise."""
        return bool(self._sinks)

    @property
    def ends(self) -> bool:
        """Whether anybody wants the ends of connections, too."""
        return any(ends for _, ends, _ in self._sinks)

    @property
    def lines(self) -> Take | None:
        """Takes so many lines in the place of records, where the only sink there is can."""
        return self._sinks[0][2] if len(self._sinks) == 1 else None

    def __call__(self, record: Record) -> None:
        self.denials.note(record)
        for sink, ends, _ in self._sinks:
            if ends or record.verb != "close":
                sink(record)

    def add(
        self,
        sink: Callable[[Record], None],
        *,
        ends: bool = False,
        lines: Take | None = None,
    ) -> None:
        """From now on the sink takes each record, those of connections' ends only with `ends`. It must not wait, and
        must not raise. `lines` takes the audit log's lines of records instead, as long as nobody else wants any."""
        self._change((*self._sinks, (sink, ends, lines)))

    def remove(self, sink: Callable[[Record], None]) -> None:
        """Undo `add`."""
        self._change(tuple(each for each in self._sinks if each[0] != sink))

    def watch(self, changed: Callable[[], None]) -> None:
        """Call changed() now, and whenever `active` or `ends` may be another."""
        with self._lock:
            self._watchers.append(changed)
            changed()

    def unwatch(self, changed: Callable[[], None]) -> None:
        """Undo `watch`."""
        with self._lock:
            self._watchers.remove(changed)

    def _change(
        self, sinks: tuple[tuple[Callable[[Record], None], bool, Take | None], ...]
    ) -> None:
        with self._lock:
            self._sinks = sinks
            for changed in self._watchers:
                changed()
