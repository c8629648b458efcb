"""The Python twin of the rings: by itself, beside the C rings step by step, and opposite them."""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xensock import _core
from xensock.ring import twin
from xensock.wire import indexes as ix

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

IMPLEMENTATIONS = [pytest.param(twin, id="twin"), pytest.param(_core, id="core")]
WRAP = 0xFFFFFFFF
Words = dict[int, int]


def word(buffer: bytearray, at: int) -> int:
    return int.from_bytes(buffer[at : at + 4], "little")


def put_word(buffer: bytearray, at: int, value: int) -> None:
    buffer[at : at + 4] = (value & WRAP).to_bytes(4, "little")


def slot(number: int) -> bytes:
    return (number & WRAP).to_bytes(4, "little") * 16


def outcome(call: Callable[[], Any]) -> Any:
    """What a call answers, or the type of what it raises."""
    try:
        return call()
    except (ValueError, BlockingIOError, AttributeError) as error:
        return type(error)


# Command rings


def command_page(start: int = 0, pages: int = 1) -> bytearray:
    """A ring whose indices stand at `start`, as after a long life."""
    page = bytearray(4096 * pages)
    for at in (0, 8):
        put_word(page, at, start)
    for at in (4, 12):
        put_word(page, at, start + 1)
    return page


@pytest.mark.parametrize("rings", IMPLEMENTATIONS)
def test_an_initialised_ring_has_the_bytes_of_the_reference(rings: ModuleType) -> None:
    page = bytearray(b"\xaa" * 4096)
    front = rings.FrontRing(page, initialise=True)
    assert bytes(page) == bytes.fromhex("00000000 01000000 00000000 01000000") + bytes(4080)
    assert (front.slots, front.free) == (32, 32)
    assert front.push(b"r" * 64) is True
    assert word(page, 0) == 1
    assert page[64:128] == b"r" * 64
    front.close()


@pytest.mark.parametrize("rings", IMPLEMENTATIONS)
@pytest.mark.parametrize(("pages", "slots"), [(1, 32), (2, 64), (3, 128), (4, 128), (16, 512)])
def test_slots(rings: ModuleType, pages: int, slots: int) -> None:
    page = bytearray(4096 * pages)
    assert rings.FrontRing(page, initialise=True).slots == slots
    assert rings.BackRing(page).slots == slots


@pytest.mark.parametrize("rings", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", [0, 64, 4095, 4097, 17 * 4096])
def test_other_lengths_are_no_ring(rings: ModuleType, length: int) -> None:
    for make in (rings.FrontRing, rings.BackRing):
        with pytest.raises(ValueError, match="pages"):
            make(bytearray(length))


def make_pair(front: ModuleType, back: ModuleType, start: int) -> tuple[Any, Any, bytearray]:
    page = command_page(start)
    return front.FrontRing(page), back.BackRing(page), page


PAIRS = [
    pytest.param(twin, twin, id="twin-twin"),
    pytest.param(twin, _core, id="twin-core"),
    pytest.param(_core, twin, id="core-twin"),
]


@pytest.mark.parametrize(("of_front", "of_back"), PAIRS)
@given(
    start=st.sampled_from([0, 1, 31, 0xFFFFFFE0, 0xFFFFFFFF]),
    steps=st.lists(st.sampled_from(["push", "take", "answer", "pop"]), max_size=150),
)
@settings(max_examples=40)
def test_requests_and_responses_arrive_in_order(
    of_front: ModuleType, of_back: ModuleType, start: int, steps: list[str]
) -> None:
    front, back, _ = make_pair(of_front, of_back, start)
    sent, taken, answered = deque[bytes](), deque[bytes](), deque[bytes]()
    for number, step in enumerate(steps):
        held = len(sent) + len(taken) + len(answered)
        assert (front.free, back.owed) == (32 - held, len(taken))
        if step == "push" and held < 32:
            front.push(slot(number))
            sent.append(slot(number))
        elif step == "push":
            with pytest.raises(BlockingIOError):
                front.push(slot(number))
        elif step == "take":
            expected = [sent.popleft() for _ in range(min(2, len(sent)))]
            assert back.take(2) == expected
            taken.extend(expected)
        elif step == "answer" and taken:
            response = taken.popleft()[:24]
            back.answer(response)
            answered.append(response.ljust(64, b"\0"))
        elif step == "pop":
            assert front.pop() == (answered.popleft() if answered else None)


@pytest.mark.parametrize(("of_front", "of_back"), PAIRS)
@pytest.mark.parametrize("start", [0, 0xFFFFFFFE])
def test_who_sleeps_is_told_once(of_front: ModuleType, of_back: ModuleType, start: int) -> None:
    front, back, _ = make_pair(of_front, of_back, start)
    assert back.arm() is False
    assert front.push(slot(1)) is True
    assert front.push(slot(2)) is False, "it is awake already"
    assert back.arm() is True, "there is something: do not sleep"
    assert back.take() == [slot(1), slot(2)]
    assert front.arm() is False
    assert back.answer(slot(1)) is True
    assert back.answer(slot(2)) is False
    assert front.arm() is True
    assert [front.pop(), front.pop(), front.pop()] == [slot(1), slot(2), None]
    assert back.arm() is False
    assert front.push(slot(3)) is True


@pytest.mark.parametrize("rings", IMPLEMENTATIONS)
def test_impossible_indices(rings: ModuleType) -> None:
    front, back, page = make_pair(rings, rings, 7)
    put_word(page, 0, 7 + 33)
    with pytest.raises(twin.RingError):
        back.take()
    put_word(page, 8, 8)
    with pytest.raises(twin.RingError):
        front.pop()
    with pytest.raises(ValueError, match="response"):
        back.answer(slot(1))


commands = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["push", "answer"]), st.integers(0, WRAP)),
        st.tuples(st.just("take"), st.integers(0, 40)),
        st.tuples(st.sampled_from(["pop", "arm-front", "arm-back"]), st.just(0)),
        st.tuples(st.sampled_from(["req_prod", "req_event", "rsp_prod", "rsp_event"]), st.integers(-40, 40)),
    ),
    max_size=80,
)  # fmt: skip


def command_step(front: Any, back: Any, page: bytearray, step: str, value: int) -> Any:
    match step:
        case "push":
            return outcome(lambda: front.push(slot(value)))
        case "answer":
            return outcome(lambda: back.answer(slot(value)))
        case "take":
            return outcome(lambda: back.take(value))
        case "pop":
            return outcome(front.pop)
        case "arm-front":
            return front.arm()
        case "arm-back":
            return back.arm()
    at = 4 * ["req_prod", "req_event", "rsp_prod", "rsp_event"].index(step)
    return put_word(page, at, word(page, at) + value)


@given(st.sampled_from([0, 5, 0xFFFFFFF0]), commands)
def test_c_and_python_do_the_same_on_a_command_ring(
    start: int, steps: list[tuple[str, int]]
) -> None:
    """Also when somebody writes the index words between two steps."""
    ours, core = (make_pair(rings, rings, start) for rings in (twin, _core))
    for step, value in steps:
        assert command_step(*ours, step, value) == command_step(*core, step, value), step
        assert (ours[0].free, ours[1].owed) == (core[0].free, core[1].owed), step
        assert ours[2] == core[2], step


# Data rings


def data_page(start: int = 0) -> bytearray:
    page = bytearray(4096)
    for at in (ix.IN_CONS, ix.IN_PROD, ix.OUT_CONS, ix.OUT_PROD):
        put_word(page, at, start)
    for at in (ix.IN_PROD_EVENT, ix.IN_CONS_EVENT, ix.OUT_PROD_EVENT, ix.OUT_CONS_EVENT):
        put_word(page, at, start + 1)
    return page


def data_pair(
    front: ModuleType, back: ModuleType, start: int, events: bool
) -> tuple[Any, Any, bytearray, bytearray]:
    page, data = data_page(start), bytearray(8192)
    return (
        front.DataRing(page, data, "front", events),
        back.DataRing(page, data, "back", events),
        page,
        data,
    )


@pytest.mark.parametrize("rings", IMPLEMENTATIONS)
def test_initialised_indexes_have_the_bytes_of_the_reference(rings: ModuleType) -> None:
    page = bytearray(4096)
    ix.write_layout(page, ix.Layout(1, (8, 9)))
    before = bytes(page[128:])
    page[:12] = page[64:76] = b"\xaa" * 12
    ring = rings.DataRing(page, bytearray(8192), "front", initialise=True)
    assert ring.size == 4096
    assert bytes(page[16:24]) == bytes(page[80:88]) == bytes.fromhex("01000000 01000000")
    assert bytes(page[:12]) == bytes(page[64:76]) == bytes(12)
    assert bytes(page[128:]) == before
    ring.close()


@pytest.mark.parametrize(("of_front", "of_back"), PAIRS)
def test_halves_and_words_of_the_reference(of_front: ModuleType, of_back: ModuleType) -> None:
    front, back, page, data = data_pair(of_front, of_back, 0, False)
    assert front.write(b"to the backend") == (14, True)
    assert (word(page, ix.OUT_PROD), data[4096:4110]) == (14, b"to the backend")
    assert back.write(b"to the frontend") == (15, True)
    assert (word(page, ix.IN_PROD), data[:15]) == (15, b"to the frontend")
    assert back.peek(6) == b"to the"
    assert back.read(6) == (b"to the", True)
    assert word(page, ix.OUT_CONS) == 6
    assert front.read(100) == (b"to the frontend", True)
    assert front.read(100) == (b"", False)
    assert word(page, ix.IN_CONS) == 15


@pytest.mark.parametrize("rings", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", [0, 4096, 12288, 8191, 64 * 1024 * 1024])
def test_other_data_lengths_are_no_ring(rings: ModuleType, length: int) -> None:
    with pytest.raises(ValueError, match="bytes"):
        rings.DataRing(bytearray(4096), bytearray(length), "front")
    with pytest.raises(ValueError, match="bytes"):
        rings.DataRing(bytearray(4095), bytearray(8192), "front")
    with pytest.raises(ValueError, match="role"):
        rings.DataRing(bytearray(4096), bytearray(8192), "side")


@pytest.mark.parametrize(("of_front", "of_back"), PAIRS)
@given(
    start=st.sampled_from([0, 4000, 0xFFFFF000, 0xFFFFFFFF]),
    steps=st.lists(
        st.tuples(st.sampled_from(["fw", "br", "bw", "fr"]), st.integers(0, 5000)), max_size=60
    ),
)
@settings(max_examples=40)
def test_bytes_arrive_in_order(
    of_front: ModuleType, of_back: ModuleType, start: int, steps: list[tuple[str, int]]
) -> None:
    front, back, _, _ = data_pair(of_front, of_back, start, True)
    source = bytes(number * 7 % 251 for number in range(5000))
    queues = {"out": b"", "in": b""}
    for step, amount in steps:
        name = "out" if step in ("fw", "br") else "in"
        producer, consumer = (front, back) if name == "out" else (back, front)
        if step.endswith("w"):
            written, _ = producer.write(source[:amount])
            assert written == min(amount, 4096 - len(queues[name]))
            queues[name] += source[:written]
        else:
            assert consumer.readable == len(queues[name])
            read, _ = consumer.read(amount)
            assert read == queues[name][:amount]
            queues[name] = queues[name][amount:]
        assert producer.room == 4096 - len(queues[name])


@pytest.mark.parametrize(("of_front", "of_back"), PAIRS)
@pytest.mark.parametrize("start", [0, 0xFFFFFF00])
def test_events_tell_who_asked(of_front: ModuleType, of_back: ModuleType, start: int) -> None:
    front, back, _, _ = data_pair(of_front, of_back, start, True)
    assert back.arm_read() is False
    assert front.write(b"a") == (1, True)
    assert front.write(b"b") == (1, False), "nobody asked for more"
    assert back.arm_read() is True
    assert back.read(9) == (b"ab", True), "from the beginning both ask for the first move"
    assert front.write(bytes(4096)) == (4096, False), "the back has not asked again"
    assert front.arm_write(2048) is False
    assert back.read(2047)[1] is False
    assert back.read(1)[1] is True
    assert front.room == 2048
    assert back.read(100)[1] is False
    assert front.arm_write(1) is True


@pytest.mark.parametrize(("of_front", "of_back"), PAIRS)
def test_errors_come_after_the_bytes(of_front: ModuleType, of_back: ModuleType) -> None:
    front, back, page, _ = data_pair(of_front, of_back, 0, True)
    back.write(b"last words")
    assert front.arm_read() is True
    back.in_error = -errno.ENOTCONN
    assert (front.in_error, front.read_error) == (-107, 0)
    assert bytes(page[8:12]) == bytes.fromhex("95ffffff")
    assert front.read(100)[0] == b"last words"
    assert front.read_error == -107
    assert front.arm_read() is True, "an error is no reason to wait"
    assert front.write(b"half-closed only")[0] == 16
    back.out_error = -errno.ECONNRESET
    assert front.write(b"x") == (0, False)
    assert front.arm_write() is True
    assert (back.in_error, back.out_error, front.out_error) == (-107, -104, -104)
    for wrong in (1, -(1 << 31) - 1):
        with pytest.raises(ValueError, match="errno"):
            back.in_error = wrong
    with pytest.raises(AttributeError):
        front.in_error = -1


@pytest.mark.parametrize(("of_front", "of_back"), PAIRS)
def test_what_the_front_sends_no_more_does_not_stop_the_back(
    of_front: ModuleType, of_back: ModuleType
) -> None:
    front, back, _, _ = data_pair(of_front, of_back, 0, True)
    back.out_error = -errno.EPIPE
    assert back.write(b"still read")[0] == 10
    assert front.read(100)[0] == b"still read"


@pytest.mark.parametrize(("of_front", "of_back"), PAIRS)
def test_status_of_a_connection_being_made(of_front: ModuleType, of_back: ModuleType) -> None:
    front, back, page, _ = data_pair(of_front, of_back, 0, True)
    assert (front.status, back.status) == (0, 0)
    back.status = ix.STATUS_CONNECTED
    assert front.status == word(page, 88) == 1
    with pytest.raises(AttributeError):
        front.status = 0


WORDS = [
    ix.IN_CONS, ix.IN_PROD, ix.IN_ERROR, ix.IN_PROD_EVENT, ix.IN_CONS_EVENT,
    ix.OUT_CONS, ix.OUT_PROD, ix.OUT_ERROR, ix.OUT_PROD_EVENT, ix.OUT_CONS_EVENT,
]  # fmt: skip
moves = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["read", "write", "peek", "arm_write"]),
            st.booleans(),
            st.integers(0, 5000),
        ),
        st.tuples(st.sampled_from(["arm_read", "look"]), st.booleans(), st.just(0)),
        st.tuples(st.sampled_from(["in_error", "out_error"]), st.booleans(), st.integers(-200, 0)),
        st.tuples(st.sampled_from(WORDS), st.just(True), st.integers(-5000, 5000)),
    ),
    max_size=60,
)


TEXT = bytes(number % 253 for number in range(5000))


def data_step(ring: Any, page: bytearray, what: str | int, value: int) -> Any:
    match what:
        case int():
            return put_word(page, what, word(page, what) + value)
        case "read" | "peek" | "arm_write":
            return outcome(lambda: getattr(ring, what)(value))
        case "write":
            return outcome(lambda: ring.write(TEXT[:value]))
        case "arm_read":
            return ring.arm_read()
        case "look":
            return ring.status, ring.read_error
    return outcome(lambda: setattr(ring, what, value))


def look(ring: Any) -> tuple[int, int, int, int]:
    assert 0 <= ring.readable <= 4096
    assert 0 <= ring.room <= 4096
    return ring.readable, ring.room, ring.in_error, ring.out_error


@given(st.sampled_from([0, 4095, 0xFFFFFF00]), st.booleans(), moves)
@example(0, True, [("out_error", False, -32), ("write", False, 10)])
def test_c_and_python_do_the_same_on_a_data_ring(
    start: int, events: bool, steps: list[tuple[str | int, bool, int]]
) -> None:
    """Also when somebody writes the index words between two steps."""
    ours, core = (data_pair(rings, rings, start, events) for rings in (twin, _core))
    for what, at_front, value in steps:
        side = 0 if at_front else 1
        did = data_step(ours[side], ours[2], what, value)
        assert did == data_step(core[side], core[2], what, value), what
        assert [look(ring) for ring in ours[:2]] == [look(ring) for ring in core[:2]], what
        assert ours[2:] == core[2:], what


@pytest.mark.parametrize("rings", IMPLEMENTATIONS)
def test_closed_rings_answer_valueerror_and_let_go(rings: ModuleType) -> None:
    page, indexes, data = command_page(), data_page(), bytearray(8192)
    front, back = rings.FrontRing(page), rings.BackRing(page)
    ring = rings.DataRing(indexes, data, "front")
    for one in (front, back, ring):
        one.close()
        one.close()
    for call in (
        front.pop,
        front.arm,
        lambda: front.free,
        lambda: front.push(slot(1)),
        back.take,
        lambda: back.owed,
        lambda: back.answer(b""),
        lambda: ring.read(1),
        lambda: ring.write(b"x"),
        ring.arm_read,
        ring.arm_write,
        lambda: ring.room,
        lambda: ring.in_error,
    ):
        with pytest.raises(ValueError, match="closed"):
            call()
    page.append(0)
    indexes.append(0)
    data.append(0)
