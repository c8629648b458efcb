"""The command ring and the data ring a second time, in Python: what the C rings are tested against.

Written from docs/reference/pvcalls.md and extensions.md alone, with the interface of the classes of
the same names in `xensock._core`, whose stub says what each method means.

Limits: Python has no memory barriers. The twin is right where one thread steps both sides, and on
x86 wherever a test can see; it is an oracle, not a data path.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

from xensock._core import RingError
from xensock.wire import indexes as ix
from xensock.wire import store
from xensock.wire.requests import PAGE, SLOT

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

WRAP = 0xFFFFFFFF
REQ_PROD, REQ_EVENT, RSP_PROD, RSP_EVENT = range(4)
"""The words of a command ring's first page, by their number."""


class _Shared:
    """A buffer as bytes and as the u32 words that both sides write."""

    def __init__(self, buffer: WriteableBuffer) -> None:
        self.bytes = memoryview(buffer).cast("B")
        if self.bytes.readonly:
            raise BufferError("a ring needs a writable buffer")
        self.words = self.bytes[: len(self.bytes) // 4 * 4].cast("I")

    def release(self) -> None:
        self.words.release()
        self.bytes.release()


class _CommandRing:
    """What both ends of a command ring have."""

    def __init__(self, page: WriteableBuffer) -> None:
        shared = _Shared(page)
        pages, rest = divmod(len(shared.bytes), PAGE)
        if rest or not 1 <= pages <= 1 << store.LARGEST_RING_PAGE_ORDER:
            shared.release()
            raise ValueError(f"command pages of {pages * PAGE + rest} bytes are no ring")
        self._shared: _Shared | None = shared
        self._slots = 1 << (((pages * PAGE - SLOT) // SLOT).bit_length() - 1)

    @property
    def slots(self) -> int:
        self._page()
        return self._slots

    def close(self) -> None:
        if self._shared is not None:
            self._shared.release()
            self._shared = None

    def _page(self) -> _Shared:
        if self._shared is None:
            raise ValueError("the ring is closed")
        return self._shared

    def _slot(self, index: int) -> slice:
        start = SLOT + SLOT * (index % self._slots)
        return slice(start, start + SLOT)

    def _show(self, prod: int, event: int, old: int, new: int) -> bool:
        words = self._page().words
        words[prod] = new
        return ix.passed(old, new, words[event])


class FrontRing(_CommandRing):
    """The frontend's end of a command ring."""

    def __init__(self, page: WriteableBuffer, initialise: bool = False) -> None:
        super().__init__(page)
        shared = self._page()
        if initialise:
            shared.bytes[:] = bytes(len(shared.bytes))
            shared.words[REQ_EVENT] = shared.words[RSP_EVENT] = 1
        self._req_prod = shared.words[REQ_PROD]
        self._rsp_cons = shared.words[RSP_PROD]
        if self._asked > self._slots:
            self.close()
            raise ValueError("a ring with more requests than slots")

    @property
    def _asked(self) -> int:
        return (self._req_prod - self._rsp_cons) & WRAP

    @property
    def free(self) -> int:
        self._page()
        return self._slots - self._asked

    def push(self, slot: ReadableBuffer, /) -> bool:
        request = bytes(memoryview(slot))
        shared = self._page()
        if len(request) != SLOT:
            raise ValueError(f"a slot has {SLOT} bytes, not {len(request)}")
        if not self.free:
            raise BlockingIOError("the command ring is full")
        shared.bytes[self._slot(self._req_prod)] = request
        old, self._req_prod = self._req_prod, (self._req_prod + 1) & WRAP
        return self._show(REQ_PROD, REQ_EVENT, old, self._req_prod)

    def pop(self) -> bytes | None:
        shared = self._page()
        ready = (shared.words[RSP_PROD] - self._rsp_cons) & WRAP
        if ready > self._asked:
            raise RingError("the backend claims more responses than there were requests")
        if not ready:
            return None
        response = bytes(shared.bytes[self._slot(self._rsp_cons)])
        self._rsp_cons = (self._rsp_cons + 1) & WRAP
        return response

    def arm(self) -> bool:
        words = self._page().words
        words[RSP_EVENT] = (self._rsp_cons + 1) & WRAP
        return words[RSP_PROD] != self._rsp_cons


class BackRing(_CommandRing):
    """The backend's end of a command ring."""

    def __init__(self, page: WriteableBuffer) -> None:
        super().__init__(page)
        self._rsp_prod = self._req_cons = self._page().words[RSP_PROD]

    @property
    def owed(self) -> int:
        self._page()
        return (self._req_cons - self._rsp_prod) & WRAP

    def take(self, limit: int = sys.maxsize) -> list[bytes]:
        shared = self._page()
        taken: list[bytes] = []
        while len(taken) < limit:
            ready = (shared.words[REQ_PROD] - self._req_cons) & WRAP
            if ready > self._slots - self.owed:
                raise RingError("req_prod is impossible: more requests than the ring has slots")
            if not ready:
                break
            taken.append(bytes(shared.bytes[self._slot(self._req_cons)]))
            self._req_cons = (self._req_cons + 1) & WRAP
        return taken

    def answer(self, slot: ReadableBuffer, /) -> bool:
        response = bytes(memoryview(slot))
        shared = self._page()
        if len(response) > SLOT:
            raise ValueError(f"a slot has {SLOT} bytes, not {len(response)}")
        if not self.owed:
            raise ValueError("no request is without its response")
        shared.bytes[self._slot(self._rsp_prod)] = response.ljust(SLOT, b"\0")
        old, self._rsp_prod = self._rsp_prod, (self._rsp_prod + 1) & WRAP
        return self._show(RSP_PROD, RSP_EVENT, old, self._rsp_prod)

    def arm(self) -> bool:
        words = self._page().words
        words[REQ_EVENT] = (self._req_cons + 1) & WRAP
        return words[REQ_PROD] != self._req_cons


class _Half:
    """One direction as one of its sides sees it; words by their number in the indexes page."""

    def __init__(
        self, words: memoryview, data: memoryview, offsets: tuple[int, int, int, int], events: bool
    ) -> None:
        self._words = words
        self._data = data
        self._mine, self._theirs, self._my_event, self._their_event = (at // 4 for at in offsets)
        self._events = events
        self.size = len(data)
        self._own: int = words[self._mine]

    def readable(self) -> int:
        return ix.queued(self._words[self._theirs], self._own, self.size)

    def room(self) -> int:
        return self.size - ix.queued(self._own, self._words[self._theirs], self.size)

    def copy_out(self, length: int) -> bytes:
        start = self._own % self.size
        first = min(length, self.size - start)
        return bytes(self._data[start : start + first]) + bytes(self._data[: length - first])

    def copy_in(self, data: memoryview) -> None:
        start = self._own % self.size
        first = min(len(data), self.size - start)
        self._data[start : start + first] = data[:first]
        self._data[: len(data) - first] = data[first:]

    def move(self, length: int) -> bool:
        """Move this side's index; whether the other side is to be told."""
        if not length:
            return False
        old, self._own = self._own, (self._own + length) & WRAP
        self._words[self._mine] = self._own
        return not self._events or ix.passed(old, self._own, self._words[self._their_event])

    def ask(self, ahead: int) -> None:
        """Ask to be told when the other side's index passes one's own by `ahead`."""
        if self._events:
            self._words[self._my_event] = (self._own + ahead) & WRAP


_IN_CONSUMER = (ix.IN_CONS, ix.IN_PROD, ix.IN_PROD_EVENT, ix.IN_CONS_EVENT)
_OUT_CONSUMER = (ix.OUT_CONS, ix.OUT_PROD, ix.OUT_PROD_EVENT, ix.OUT_CONS_EVENT)


def _producer(consumer: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    cons, prod, prod_event, cons_event = consumer
    return prod, cons, cons_event, prod_event


class DataRing:
    """Both directions of a data ring, as the "front" or the "back" sees them."""

    def __init__(
        self,
        indexes: WriteableBuffer,
        data: WriteableBuffer,
        role: Literal["front", "back"] | str,
        events: bool = False,
        initialise: bool = False,
    ) -> None:
        if role not in ("front", "back"):
            raise ValueError(f'a role is "front" or "back", not "{role}"')
        self._front = role == "front"
        if initialise and not self._front:
            raise ValueError("the pages are the frontend's to initialise")
        page, both = memoryview(indexes).cast("B"), memoryview(data).cast("B")
        orders = [PAGE << order for order in range(1, ix.MAX_LARGE_ORDER + 1)]
        if len(page) != PAGE or len(both) not in orders or page.readonly or both.readonly:
            raise ValueError(f"{len(page)} and {len(both)} bytes are no data ring")
        words = page.cast("I")
        if initialise:
            for at in (*_IN_CONSUMER[:2], *_OUT_CONSUMER[:2], ix.IN_ERROR, ix.OUT_ERROR, ix.STATUS):
                words[at // 4] = 0
            for at in (*_IN_CONSUMER[2:], *_OUT_CONSUMER[2:]):
                words[at // 4] = 1
        size = len(both) // 2
        self._views: list[memoryview] = [both[:size], both[size:], both, words, page]
        into, out = self._views[:2]
        self._words = words
        self._open = True
        self._errors = {ix.IN_ERROR: 0, ix.OUT_ERROR: 0}
        if self._front:
            self._rx = _Half(words, into, _IN_CONSUMER, events)
            self._tx = _Half(words, out, _producer(_OUT_CONSUMER), events)
        else:
            self._rx = _Half(words, out, _OUT_CONSUMER, events)
            self._tx = _Half(words, into, _producer(_IN_CONSUMER), events)

    def _check(self) -> None:
        if not self._open:
            raise ValueError("the ring is closed")

    def close(self) -> None:
        self._open = False
        for view in self._views:
            view.release()

    @property
    def size(self) -> int:
        self._check()
        return self._rx.size

    @property
    def readable(self) -> int:
        self._check()
        return self._rx.readable()

    @property
    def room(self) -> int:
        self._check()
        return self._tx.room()

    def peek(self, max: int, /) -> bytes:
        self._check()
        if max < 0:
            raise ValueError("a number of bytes is not negative")
        return self._rx.copy_out(min(max, self._rx.readable()))

    def read(self, max: int, /) -> tuple[bytes, bool]:
        data = self.peek(max)
        return data, self._rx.move(len(data))

    def write(self, data: ReadableBuffer, /) -> tuple[int, bool]:
        view = memoryview(data).cast("B")
        if self._front and self.out_error:
            return 0, False
        length = min(len(view), self.room)
        self._tx.copy_in(view[:length])
        return length, self._tx.move(length)

    def arm_read(self) -> bool:
        self._check()
        self._rx.ask(1)
        return self._rx.readable() > 0 or (self._front and self.in_error != 0)

    def arm_write(self, wanted: int = 1) -> bool:
        self._check()
        if not 1 <= wanted <= self._tx.size:
            raise ValueError(f"a half of {self._tx.size} bytes never has room for {wanted}")
        self._tx.ask(wanted - self._tx.size)
        return self._tx.room() >= wanted or (self._front and self.out_error != 0)

    @property
    def read_error(self) -> int:
        error = self.in_error if self._front else 0  # looked at before the bytes
        return 0 if self.readable else error

    @property
    def in_error(self) -> int:
        return self._error(ix.IN_ERROR)

    @in_error.setter
    def in_error(self, value: int) -> None:
        self._fail(ix.IN_ERROR, value)

    @property
    def out_error(self) -> int:
        return self._error(ix.OUT_ERROR)

    @out_error.setter
    def out_error(self, value: int) -> None:
        self._fail(ix.OUT_ERROR, value)

    @property
    def status(self) -> int:
        self._check()
        return self._words[ix.STATUS // 4]

    @status.setter
    def status(self, value: int) -> None:
        self._check()
        if self._front:
            raise AttributeError("the status is the backend's to set")
        self._words[ix.STATUS // 4] = value

    def _error(self, at: int) -> int:
        self._check()
        if not self._front:
            return self._errors[at]
        word = self._words[at // 4]
        return word - (word >> 31 << 32)

    def _fail(self, at: int, value: int) -> None:
        self._check()
        if self._front:
            raise AttributeError("the error words are the backend's to set")
        if not -0x80000000 <= value <= 0:
            raise ValueError(f"an error word is 0 or a negated errno, not {value}")
        if value:
            self._errors[at] = value
            self._words[at // 4] = value & WRAP
