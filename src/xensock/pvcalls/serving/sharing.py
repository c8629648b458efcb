"""Two joined guests that share their pages (extension shared-rings): what one writes the other reads,
without a copy and without us.

The pages are ours, so that neither guest can take them away. The one that connected is side 0 and
uses them as its ring is written; the other one reads `out` and writes `in`. Each half has one error
word, which both look at; only we write it, when a side ends a stream or goes.

A guest can write anything there. That harms the connection between these two, and nobody else.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock.pvcalls.serving.held import Phase
from xensock.pvcalls.serving.limits import refuse
from xensock.transport import budget
from xensock.transport.base import PAGE
from xensock.transport.pages import make_memory
from xensock.wire import indexes
from xensock.wire.errors import to_wire
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from xensock.calls.record import Record
    from xensock.pvcalls.serving.guest import Counters, Guest
    from xensock.pvcalls.serving.held import Held

_I32, _U32 = struct.Struct("<i"), struct.Struct("<I")
_EVENTS = (
    indexes.IN_PROD_EVENT,
    indexes.IN_CONS_EVENT,
    indexes.OUT_PROD_EVENT,
    indexes.OUT_CONS_EVENT,
)


@dataclass(frozen=True, slots=True)
class _Half:
    """Where the words of a half are; half 0 is `out`, which side 0 writes."""

    prod: int
    cons: int
    high: int
    error: int


_HALVES = (
    _Half(indexes.OUT_PROD, indexes.OUT_CONS, indexes.OUT_CONS_HIGH, indexes.OUT_ERROR),
    _Half(indexes.IN_PROD, indexes.IN_CONS, indexes.IN_CONS_HIGH, indexes.IN_ERROR),
)


@dataclass(slots=True, eq=False)
class _End:
    """A guest that has come; `held` is None once it has gone."""

    guest: Guest
    held: Held | None
    counters: Counters


def share(held: Held, other: Guest) -> Shared | None:
    """Pages for a connection of `held` to a listener of another guest. None where one of the two does not
    know them, or there is no room: then the mover copies."""
    guest = held.guest
    if not all(Extension.SHARED_RINGS in each.extensions for each in (guest, other)):
        return None
    ring = held.ring
    assert ring is not None
    pages = 1 + len(ring.data) // PAGE
    if guest.pages + pages > guest.backend.limits.pages:
        return None
    try:
        shared = Shared(guest, pages)
    except OSError:
        return None
    try:
        shared.enter(held, 0)
    except OSError:
        shared.close()
        return None
    return shared


class Shared:
    """The pages of one connection, until both sides have gone."""

    def __init__(self, payer: Guest, pages: int) -> None:
        """Raises OSError."""
        if not budget.MAPPINGS.take(0, 1):
            raise refuse(errno.ENOMEM)
        try:
            self._fd = make_memory(pages)
            try:
                self._memory = mmap.mmap(self._fd, pages * PAGE)
            except BaseException:
                os.close(self._fd)
                raise
        except BaseException:
            budget.MAPPINGS.give(1)
            raise
        self._pages = pages
        self._payer = payer
        self._ends: list[_End | None] = [None, None]
        self.begun: list[Record | None] = [None, None]  # of each side, whose end is to be recorded
        self._awaited = True  # the listener has yet to accept it, or to refuse
        for at in _EVENTS:
            _U32.pack_into(self._memory, at, 1)
        _U32.pack_into(self._memory, indexes.RING_ORDER, (pages - 1).bit_length() - 1)
        payer.pages += pages
        payer.backend.shared.add(self)

    def enter(self, held: Held, side: int) -> None:
        """A socket becomes that side: its guest gets the pages, and each side what wakes the other.
        Raises OSError when a guest does not take it."""
        ring = held.ring
        assert ring is not None
        transport = held.guest.transport
        number = transport.share(self._fd, self._pages)
        end, other = _End(held.guest, held, held.guest.counters), self._ends[1 - side]
        if other is not None and other.held is not None:
            there = other.held.ring
            assert there is not None
            transport.introduce(number, there.event.notify_fd)
            other.guest.transport.introduce(other.held.share, ring.event.notify_fd)
        ring.share(number, side)
        self._ends[side] = end
        self._awaited = side == 0
        held.share, held.shared, held.side, held.phase = number, self, side, Phase.CONNECTED

    def shutdown(self, side: int, how: int) -> None:
        """That side ends its stream; that it reads no more is its own affair, as with Linux's TCP."""
        if how:
            self._fail(side, errno.ENOTCONN)
            self._tell()

    def release(self, side: int, *, reset: bool) -> None:
        """That side goes. What it wrote can still be read."""
        theirs = _HALVES[1 - side]
        # As TCP: who closes without having read everything resets.
        if reset or self._word(theirs.prod) != self._word(theirs.cons):
            self._fail(side, errno.ECONNRESET)
            self._fail(1 - side, errno.ECONNRESET)
        else:
            self._fail(side, errno.ENOTCONN)
            self._fail(1 - side, errno.ENOTCONN)
        end = self._ends[side]
        if end is not None and end.held is not None:
            end.held.shared, end.held = None, None
        self._tell()
        self._awaited = self._awaited and side == 0
        if not self._awaited and all(each is None or each.held is None for each in self._ends):
            self.close()

    def retire(self, guest: Guest, past: Counters) -> None:
        """A guest is gone: what it moved counts elsewhere."""
        for end in self._ends:
            if end is not None and end.counters is guest.counters:
                end.counters = past

    def add_to(self, total: Counters, wanted: set[int]) -> None:
        """Add what the sides whose counters (by id) are wanted have moved."""
        for side, end in enumerate(self._ends):
            if end is not None and id(end.counters) in wanted:
                self._count(side, total)

    def close(self) -> None:
        """Nobody is left, or nobody came."""
        backend = self._payer.backend
        if self not in backend.shared:
            return
        backend.shared.discard(self)
        for side, end in enumerate(self._ends):
            if end is not None:
                self._count(side, end.counters)
        moved = self._moved()
        for side, record in enumerate(self.begun):
            if record is not None:
                backend.ended(record, moved[side], moved[1 - side], 0)
        self._payer.pages -= self._pages
        self._memory.close()
        os.close(self._fd)
        budget.MAPPINGS.give(1)

    def _count(self, side: int, counters: Counters) -> None:
        """Bytes, as the guests say: who reads a half counts the wraps of its index."""
        moved = self._moved()
        counters.sent += moved[side]
        counters.received += moved[1 - side]

    def _moved(self) -> list[int]:
        """Bytes of each half, as its reader says."""
        return [self._word(half.high) << 32 | self._word(half.cons) for half in _HALVES]

    def _word(self, at: int) -> int:
        value: int = _U32.unpack_from(self._memory, at)[0]
        return value

    def _fail(self, half: int, error: int) -> None:
        """End a half, unless it has ended."""
        if not self._word(_HALVES[half].error):
            _I32.pack_into(self._memory, _HALVES[half].error, to_wire(error))

    def _tell(self) -> None:
        for end in self._ends:
            if end is not None and end.held is not None and end.held.ring is not None:
                end.held.ring.event.notify()
