"""A frontend's data rings: pages granted to the backend, and the event channel beside them."""

from __future__ import annotations

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


@dataclass(slots=True)
class DataPages:
    """An indexes page and its ring, ready for CONNECT, ACCEPT or ATTACH: `ref` and `port` name them there.

    `indexes` and `data` are writable views; whoever looks at them must let go before `free` has an effect.
    """

    ref: int
    port: int
    indexes: memoryview
    data: memoryview
    event: Event
    _pages: Pages
    _freed: bool = field(default=False)

    @classmethod
    def make(cls, session: FrontSession, order: int, events: bool) -> DataPages:
        """A ring of 2^order pages, 2^(order+11) bytes each way; `events`: with data-events. Raises OSError."""
        lists = refs_in_page(order) if order > MAX_ORDER else 0
        pages = session.allocate(1 + lists + (1 << order))
        try:
            event = session.event()
        except BaseException:
            pages.free()
            raise
        first = 1 + lists
        indexes, data = pages.memory[:PAGE], pages.memory[first * PAGE :]
        _core.DataRing(indexes, data, "front", events, True).close()
        refs = pages.refs[first:]
        for number in range(lists):  # large-rings: the indexes page names pages of references
            at = (1 + number) * PAGE
            part = refs[number * REFS_PER_PAGE : (number + 1) * REFS_PER_PAGE]
            pages.memory[at : at + PAGE] = encode_refs(part)
        write_layout(indexes, Layout(order, pages.refs[1:first] if lists else refs))
        return cls(pages.refs[0], event.port, indexes, data, event, pages)

    @property
    def size(self) -> int:
        """Bytes of one direction."""
        return direction_size((len(self.data) // PAGE).bit_length() - 1)

    def free(self) -> None:
        """The backend has answered that it let go of them. Idempotent."""
        if self._freed:
            return
        self._freed = True
        self.indexes.release()
        self.data.release()
        self.event.close()
        self._pages.free()
