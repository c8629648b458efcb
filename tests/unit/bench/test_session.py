"""A run of several rows: order, groups, progress, tools that are missing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from xensock.bench.failure import BenchError
from xensock.bench.interleave import Pair
from xensock.bench.machine import LOOPBACK
from xensock.bench.rows import Row
from xensock.bench.session import measure
from xensock.bench.side import Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

SETTING = Setting("xensock", LOOPBACK)


def fixed(native: float, ours: float) -> Callable[[Setting], AbstractContextManager[Pair]]:
    @contextmanager
    def measured(setting: Setting) -> Iterator[Pair]:
        yield Pair(lambda: native, lambda: ours)

    return measured


def test_a_group_is_reported_before_its_parts_as_the_worst_of_them() -> None:
    rows = [
        Row("a.out", "x", True, fixed(10, 9), part_of="a"),
        Row("a.in", "x", True, fixed(10, 5), part_of="a"),
        Row("b", "ms", False, fixed(10, 5)),
    ]
    told: list[str] = []
    results = measure(rows, SETTING, 2, told.append)
    assert [(found.name, found.ratio) for found in results] == [
        ("a", 0.5),
        ("a.out", 0.9),
        ("a.in", 0.5),
        ("b", 2),
    ]
    assert len(told) == 3 * 2 * 2
    assert told[0] == "[1/3] a.out: run 1 of 2, native"
    assert told[-1] == "[3/3] b: run 2 of 2, xensock"


def test_a_missing_tool_is_named_before_anything_is_measured() -> None:
    def never(setting: Setting) -> AbstractContextManager[Pair]:
        raise AssertionError("measured")

    rows = [Row("a", "x", True, never), Row("b", "x", True, never, ("no-such-tool",))]
    with pytest.raises(BenchError) as caught:
        measure(rows, SETTING, 1, lambda text: None)
    assert "no-such-tool" in caught.value.what
    assert "apt-get install no-such-tool" in caught.value.hint


def test_a_failure_says_in_which_row() -> None:
    @contextmanager
    def fails(setting: Setting) -> Iterator[Pair]:
        raise BenchError("iperf3 failed", "no route", "look")
        yield Pair(lambda: 1, lambda: 1)

    with pytest.raises(BenchError) as caught:
        measure([Row("a.out", "x", True, fails)], SETTING, 1, lambda text: None)
    shown = caught.value
    assert (shown.what, shown.cause, shown.hint) == ("a.out: iperf3 failed", "no route", "look")
