"""Who dials when, who leaves the queue, and what is left of it at the end."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from xensock.stack.dials import Dials

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def stuck(dials: Dials, count: int) -> threading.Event:
    """So many dials that hang until the event is set."""
    go, begun = threading.Event(), threading.Barrier(count + 1)

    def hang() -> None:
        begun.wait(10)
        go.wait(30)

    for _ in range(count):
        dials.begin(hang, None)
    begun.wait(10)
    return go


def test_results_and_faults_are_told(threads: ThreadPoolExecutor) -> None:
    dials = Dials(lambda: threads, 2)
    assert dials.begin(lambda: 7, None).result(10) == 7
    with pytest.raises(ZeroDivisionError):
        dials.begin(lambda: 1 // 0, None).result(10)
    assert dials.begin(lambda: 8, None).result(10) == 8


def test_they_begin_in_their_order(threads: ThreadPoolExecutor) -> None:
    dials = Dials(lambda: threads, 1)
    go = stuck(dials, 1)
    order: list[int] = []

    def note(number: int) -> Callable[[], None]:
        return lambda: order.append(number)

    begun = [dials.begin(note(number), None) for number in range(20)]
    assert dials.waiting() == 20
    go.set()
    for each in begun:
        each.result(10)
    assert order == list(range(20))


def test_who_gives_up_leaves_nothing_behind(threads: ThreadPoolExecutor) -> None:
    dials = Dials(lambda: threads, 2)
    go = stuck(dials, 2)
    queued = threads._work_queue.qsize()
    for _ in range(1000):
        dial = dials.begin(lambda: pytest.fail("nobody waits for it"), None)
        assert dials.give_up(dial)
        assert dial.cancelled()
    assert (dials.waiting(), threads._work_queue.qsize()) == (0, queued)
    go.set()
    assert dials.begin(lambda: 9, None).result(10) == 9


def test_one_that_is_under_way_goes_on(threads: ThreadPoolExecutor) -> None:
    dials = Dials(lambda: threads, 2)
    go, begun = threading.Event(), threading.Event()
    dial = dials.begin(lambda: (begun.set(), go.wait(30))[1], None)
    assert begun.wait(10)
    assert not dials.give_up(dial)
    go.set()
    assert dial.result(10) is True


def test_other_work_has_its_turn(threads: ThreadPoolExecutor) -> None:
    """A close waits for one dial, not for all."""
    dials = Dials(lambda: threads, 2)
    go = stuck(dials, 2)
    order: list[str] = []
    begun = [dials.begin(lambda: order.append("dial"), None) for _ in range(50)]
    closing = threads.submit(lambda: order.append("close"))
    go.set()
    closing.result(10)
    for each in begun:
        each.result(10)
    assert order.index("close") <= 2


def test_a_shutdown_ends_what_waits() -> None:
    threads = ThreadPoolExecutor(1)
    dials = Dials(lambda: threads, 1)
    go = stuck(dials, 1)
    dial = dials.begin(lambda: 1, 5)
    threads.shutdown(wait=False)
    go.set()
    assert dial.result(10) == 5
    with pytest.raises(RuntimeError):
        dials.begin(lambda: 2, 5)
    assert dials.waiting() == 0
