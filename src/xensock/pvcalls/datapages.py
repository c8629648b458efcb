"""A frontend's data rings: pages granted to the backend, and the event channel beside them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xensock import _core
from xensock.wire.indexes import (
    MAX_ORDER,
    REFS_PER_PAGE,
    Layout,
    direction_size,
    encode_refs,
    refs_in_page,
    write_layout,
)
from xensock.wire.requests import PAGE

if TYPE_CHECKING:
    from xensock.transport.base import Event, FrontSession, Pages


@dataclass(slots=True, eq=False)
class DataPages:
    """An indexes page and its ring, ready for CONNECT, ACCEPT or ATTACH: `ref` and `port` name them there.

    `indexes` and `data` are writable views, not to be sliced: whoever looks at them by their buffer must let go before
    `free` has an effect.
    """

    ref: int
    port: int
    indexes: memoryview
    data: memoryview
    event: Event
    _pages: Pages
    _order: int
    _keep: Spares | None = None
    _freed: bool = field(default=False)

    @classmethod
    def make(
        cls, session: FrontSession, order: int, events: bool, keep: Spares | None = None
    ) -> DataPages:
        """A ring of 2^order pages, 2^(order+11) bytes each way; `events`: with data-events. Raises OSError."""
        lists = refs_in_page(order) if order > MAX_ORDER else 0
        pages = session.allocate(1 + lists + (1 << order))
        try:
            event = session.event()
        except BaseException:
            pages.free()
            raise
        return cls._ready(pages, event, order, events, keep)

    @classmethod
    def _ready(
        cls, pages: Pages, event: Event, order: int, events: bool, keep: Spares | None
    ) -> DataPages:
        lists = refs_in_page(order) if order > MAX_ORDER else 0
        first = 1 + lists
        indexes, data = pages.memory[:PAGE], pages.memory[first * PAGE :]
        _core.DataRing(indexes, data, "front", events, True).close()
        refs = pages.refs[first:]
        for number in range(lists):  # large-rings: the indexes page names pages of references
            at = (1 + number) * PAGE
            part = refs[number * REFS_PER_PAGE : (number + 1) * REFS_PER_PAGE]
            pages.memory[at : at + PAGE] = encode_refs(part)
        write_layout(indexes, Layout(order, pages.refs[1:first] if lists else refs))
        return cls(pages.refs[0], event.port, indexes, data, event, pages, order, keep)

    @property
    def size(self) -> int:
        """Bytes of one direction."""
        return direction_size((len(self.data) // PAGE).bit_length() - 1)

    def free(self) -> None:
        """The backend has answered that it let go of them. Idempotent."""
        if self._freed:
            return
        self._freed = True
        try:
            self.indexes.release()
            self.data.release()
        except BufferError:
            kept = False  # somebody still looks: these pages must not become another's
        else:
            kept = self._keep is not None and self._keep.put(self._order, self._pages, self.event)
        if not kept:
            self.event.close()
            self._pages.free()


class Spares:
    """Rings that were freed, for the next ones: making one anew costs a message with descriptors to the backend, two
    eventfds, a mapping and its page faults. For any thread."""

    MOST_PAGES = 1024
    """4 MiB of memory that waits for a use."""

    def __init__(self, session: FrontSession, events: bool) -> None:
        self._session = session
        self._events = events
        self._lock = threading.Lock()
        self._pages = 0
        self._spare: dict[int, list[tuple[Pages, Event]]] = {}
        self._closed = False

    def take(self, order: int) -> DataPages:
        """A ring of this order. What earlier bytes it holds the backend has seen. Raises OSError."""
        with self._lock:
            found = self._spare.get(order)
            spare = found.pop() if found else None
            if spare is not None:
                self._pages -= len(spare[0].refs)
        if spare is None:
            return DataPages.make(self._session, order, self._events, self)
        pages, event = spare
        event.clear()
        pages.memory[:PAGE] = bytes(PAGE)
        return DataPages._ready(pages, event, order, self._events, self)

    def put(self, order: int, pages: Pages, event: Event) -> bool:
        """Keep a ring that nobody looks at; False when there are enough."""
        with self._lock:
            if self._closed or self._pages + len(pages.refs) > self.MOST_PAGES:
                return False
            self._pages += len(pages.refs)
            self._spare.setdefault(order, []).append((pages, event))
            return True

    def close(self) -> None:
        """Free what is kept, and keep nothing more."""
        with self._lock:
            self._closed = True
            spare, self._spare = self._spare, {}
        for rings in spare.values():
            for pages, event in rings:
                event.close()
                pages.free()
