"""The C rings against their twin in long random lives, and between two processes.

Both are driven through the same steps on memory of their own: results, errors and every byte of the
pages must be equal after each, whatever a hostile peer writes into the index words meanwhile.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from xensock import _core
from xensock.ring import twin

if TYPE_CHECKING:
    from collections.abc import Callable

CORE = Path(__file__).parents[3] / "native" / "core"
PAGE = 4096
WRAP = 0xFFFFFFFF
sides = st.sampled_from(["front", "back"])
# Near each other, near the ends of a u32, and anything.
words = st.one_of(
    st.integers(0, 40), st.integers(WRAP - 40, WRAP), st.integers(2**31 - 2, 2**31 + 2),
    st.integers(0, WRAP),
)  # fmt: skip


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (ValueError, BlockingIOError) as error:
        return type(error)


def put(page: bytearray, at: int, value: int) -> None:
    page[at : at + 4] = (value & WRAP).to_bytes(4, "little")


class CommandRings(RuleBasedStateMachine):
    """A front and a back in C on one ring, and the same in Python on another."""

    answers = Bundle("answers")

    @initialize(
        pages=st.sampled_from([1, 2, 3, 16]),
        start=st.sampled_from([0, 1, WRAP - 20, WRAP]),
    )
    def make(self, pages: int, start: int) -> None:
        self.pages = [bytearray(PAGE * pages) for _ in range(2)]
        for page in self.pages:
            for at, value in ((0, start), (4, start + 1), (8, start), (12, start + 1)):
                put(page, at, value)
        self.rings: list[dict[str, Any]] = []
        for part, page in zip((_core, twin), self.pages, strict=True):
            self.rings.append({"front": part.FrontRing(page), "back": part.BackRing(page)})

    def both(self, call: Callable[[dict[str, Any]], Any]) -> Any:
        core, python = (outcome(lambda ring=ring: call(ring)) for ring in self.rings)
        assert core == python
        return core

    @rule(number=st.integers(0, 255), count=st.integers(1, 70))
    def push(self, number: int, count: int) -> None:
        for k in range(count):
            self.both(lambda ring, k=k: ring["front"].push(bytes([number, k] * 32)))

    @rule(target=answers, limit=st.integers(0, 600))
    def take(self, limit: int) -> Any:
        taken = self.both(lambda ring: ring["back"].take(limit))
        return multiple(*(taken if isinstance(taken, list) else ()))

    @rule(answer=consumes(answers), length=st.integers(0, 64))
    def answer(self, answer: bytes, length: int) -> None:
        self.both(lambda ring: ring["back"].answer(answer[:length]))

    @rule(count=st.integers(1, 70))
    def pop(self, count: int) -> None:
        for _ in range(count):
            self.both(lambda ring: ring["front"].pop())

    @rule(side=sides)
    def arm(self, side: str) -> None:
        self.both(lambda ring: ring[side].arm())

    @rule(at=st.sampled_from([0, 4, 8, 12]), value=words)
    def lie(self, at: int, value: int) -> None:
        for page in self.pages:
            put(page, at, value)

    @rule(side=sides)
    def start_again(self, side: str) -> None:
        """A new process takes the side over where the pages say that it stands."""
        made = []
        for part, page, rings in zip((_core, twin), self.pages, self.rings, strict=True):
            cls = part.FrontRing if side == "front" else part.BackRing
            new = outcome(lambda cls=cls, page=page: cls(page))
            made.append(isinstance(new, cls))
            if made[-1]:
                rings[side].close()
                rings[side] = new
        assert made[0] == made[1]

    @invariant()
    def equal(self) -> None:
        assert self.pages[0] == self.pages[1]
        state = self.both(lambda ring: (ring["front"].free, ring["back"].owed, ring["back"].slots))
        assert 0 <= state[0] <= state[2]
        assert 0 <= state[1] <= state[2]


class DataRings(RuleBasedStateMachine):
    """Both sides of a data ring in C, and the same in Python."""

    @initialize(
        order=st.sampled_from([1, 2, 5]),
        start=st.sampled_from([0, 4095, WRAP - 5000, WRAP]),
        events=st.booleans(),
    )
    def make(self, order: int, start: int, events: bool) -> None:
        self.size = PAGE << order >> 1
        self.events = events
        self.indexes = [bytearray(PAGE) for _ in range(2)]
        self.data = [bytearray(PAGE << order) for _ in range(2)]
        for page in self.indexes:
            for at in (0, 4, 64, 68):
                put(page, at, start)
            for at in (16, 20, 80, 84):
                put(page, at, start + 1)
        self.rings: list[dict[str, Any]] = [{}, {}]
        for side in ("front", "back"):
            self.start_again(side)

    def both(self, call: Callable[[dict[str, Any]], Any]) -> Any:
        core, python = (outcome(lambda ring=ring: call(ring)) for ring in self.rings)
        assert core == python
        return core

    @rule(side=sides, length=st.integers(0, 70000), seed=st.integers(0, 255))
    def write(self, side: str, length: int, seed: int) -> None:
        data = bytes((seed + k) & 0xFF for k in range(length % (self.size + 100)))
        written, _ = self.both(lambda ring: ring[side].write(data))
        assert written <= len(data)

    @rule(side=sides, length=st.integers(0, 70000))
    def read(self, side: str, length: int) -> None:
        kept = self.both(lambda ring: ring[side].peek(length))
        data, _ = self.both(lambda ring: ring[side].read(length))
        assert data == kept

    @rule(side=sides, wanted=st.integers(0, 70000))
    def arm(self, side: str, wanted: int) -> None:
        self.both(lambda ring: ring[side].arm_write(wanted % (self.size + 2)))
        self.both(lambda ring: ring[side].arm_read())

    @rule(out=st.booleans(), number=st.integers(-200, 0))
    def fail(self, out: bool, number: int) -> None:
        name = "out_error" if out else "in_error"
        self.both(lambda ring: setattr(ring["back"], name, number))

    @rule(at=st.sampled_from([0, 4, 8, 16, 20, 64, 68, 72, 80, 84, 88]), value=words)
    def lie(self, at: int, value: int) -> None:
        for page in self.indexes:
            put(page, at, value)

    @rule(side=sides)
    def start_again(self, side: str) -> None:
        for k, part in enumerate((_core, twin)):
            if side in self.rings[k]:
                self.rings[k][side].close()
            new = part.DataRing(self.indexes[k], self.data[k], side, events=self.events)
            self.rings[k][side] = new

    @invariant()
    def equal(self) -> None:
        if not hasattr(self, "rings"):
            return
        assert self.indexes[0] == self.indexes[1]
        assert self.data[0] == self.data[1]
        for side in ("front", "back"):
            for name in ("readable", "room"):
                seen = self.both(lambda ring, side=side, name=name: getattr(ring[side], name))
                assert 0 <= seen <= self.size
            for name in ("in_error", "out_error", "read_error", "status"):
                self.both(lambda ring, side=side, name=name: getattr(ring[side], name))


TestCommandRings = CommandRings.TestCase
TestDataRings = DataRings.TestCase
TestCommandRings.settings = TestDataRings.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)


# Between two processes: real sharing, real sleeping.

PEER = """
import mmap, os, select, sys
{rings}
memory, mine, theirs = map(int, sys.argv[1:4])
pages = mmap.mmap(memory, 9 * 4096)
view = memoryview(pages)
ring = rings.DataRing(view[:4096], view[4096:], "back", events=True)
left = int(sys.argv[4])
while left:
    data = ring.peek(1000)
    if not data:
        if not ring.arm_read():
            assert select.select([mine], [], [], 30)[0], "a lost wake-up"
            os.eventfd_read(mine)
        continue
    if not ring.room:
        if not ring.arm_write():
            assert select.select([mine], [], [], 30)[0], "a lost wake-up"
            os.eventfd_read(mine)
        continue
    written, notify = ring.write(data)
    _, told = ring.read(written)
    left -= written
    if notify or told:
        os.eventfd_write(theirs, 1)
ring.in_error = -107
os.eventfd_write(theirs, 1)
"""


@pytest.mark.parametrize(
    ("rings", "total"),
    [
        pytest.param("from xensock import _core as rings", 600_000, id="core"),
        pytest.param("from xensock.ring import twin as rings", 100_000, id="twin"),
    ],
)
def test_an_echo_between_two_processes(rings: str, total: int) -> None:
    memory = os.memfd_create("rings", os.MFD_CLOEXEC)
    front, back = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))
    os.ftruncate(memory, 9 * PAGE)
    with mmap.mmap(memory, 9 * PAGE) as pages:
        view = memoryview(pages)
        indexes, data = view[:PAGE], view[PAGE:]
        ring = _core.DataRing(indexes, data, "front", events=True, initialise=True)
        script = PEER.format(rings=rings)
        argv = [sys.executable, "-c", script, *map(str, (memory, back, front, total))]
        sent, received = hashlib.sha256(), hashlib.sha256()
        written = got = slept = 0
        with subprocess.Popen(argv, pass_fds=(memory, front, back)) as peer:
            while not (error := ring.read_error):
                piece = bytes((written + k) * 7 & 0xFF for k in range(min(3000, total - written)))
                count, notify = ring.write(piece)
                sent.update(piece[:count])
                written += count
                back_again, told = ring.read(700)
                received.update(back_again)
                got += len(back_again)
                if notify or told:
                    os.eventfd_write(back, 1)
                if count or back_again or ring.arm_read():
                    continue
                if written < total and ring.arm_write(wanted=ring.size // 2):
                    continue
                slept += 1
                assert select.select([front], [], [], 30)[0], "a lost wake-up"
                os.eventfd_read(front)
        assert (peer.returncode, error, got, written) == (0, -107, total, total)
        assert sent.digest() == received.digest()
        assert slept
        ring.close()
        for each in (indexes, data, view):
            each.release()
    for fd in (memory, front, back):
        os.close(fd)


def test_a_ring_holds_its_pages_until_it_is_closed() -> None:
    pages = mmap.mmap(-1, PAGE)
    ring = _core.FrontRing(pages, initialise=True)
    with pytest.raises(BufferError):
        pages.close()
    ring.close()
    pages.close()
    with pytest.raises(ValueError, match="closed"):
        ring.push(bytes(64))


@pytest.mark.parametrize("cls", [_core.FrontRing, _core.BackRing])
def test_rings_need_memory_that_can_be_written(cls: Any) -> None:
    with pytest.raises(TypeError, match="read-write"):
        cls(bytes(PAGE))
    with pytest.raises(ValueError, match="none of a ring"):
        cls(memoryview(bytearray(2 * PAGE))[1 : PAGE + 1])


def test_no_more_is_owed_than_there_are_slots() -> None:
    pages = mmap.mmap(-1, PAGE)
    back = _core.BackRing(pages)
    slots = back.slots
    for taken, answered in ((slots, 0), (5, 5), (slots - 2, (-2) & 0xFFFFFFFF)):
        _core.BackRing(pages, taken, answered).close()
    for taken, answered in ((slots + 1, 0), (0, 1), (slots - 1, (-2) & 0xFFFFFFFF)):
        with pytest.raises(ValueError, match="than the ring has slots"):
            _core.BackRing(pages, taken, answered)
    back.close()
    pages.close()


def test_memory_order_is_spelled_in_one_header() -> None:
    words = re.compile(r"\b(atomic_\w+|_Atomic|__atomic\w*|__sync\w*|volatile|stdatomic)\b")
    found = {
        path.name: words.findall(path.read_text())
        for path in CORE.glob("*.[ch]")
        if path.name != "order.h" and words.search(path.read_text())
    }
    assert found == {}
    assert words.search((CORE / "order.h").read_text())
