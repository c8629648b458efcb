"""The rows: names that users and scripts rely on, choosing among them, targets."""

from __future__ import annotations

import pytest

from xensock.bench.failure import BenchError
from xensock.bench.interleave import Samples
from xensock.bench.result import Result
from xensock.bench.rows import ROWS, TARGETS, Target, choose, names

PROMISED = [
    "direct.throughput.1",
    "direct.throughput.3",
    "direct.http.kept",
    "direct.http.new",
    "direct.rtt",
    "relay.throughput.1",
    "relay.http.new",
    "startup",
    "memory",
]


def test_the_promised_names_exist() -> None:
    assert set(PROMISED) <= set(names())
    assert set(TARGETS) <= set(names())
    assert len(names()) == len(set(names()))


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        (["startup"], ["startup"]),
        (["direct.rtt", "startup"], ["direct.rtt", "startup"]),
        (["startup", "direct.rtt"], ["direct.rtt", "startup"]),
        (
            ["relay.throughput.1"],
            ["relay.throughput.1.out", "relay.throughput.1.in", "relay.throughput.1.served"],
        ),
        (["direct.throughput.3.in"], ["direct.throughput.3.in"]),
        ([], [row.name for row in ROWS]),
    ],
)
def test_rows_are_chosen_by_name(wanted: list[str], chosen: list[str]) -> None:
    assert [row.name for row in choose(wanted)] == chosen


@pytest.mark.parametrize("name", ["startpu", "direct.throughput.2", "direct.", "zzzzzz", ""])
def test_an_unknown_name_has_a_hint(name: str) -> None:
    with pytest.raises(BenchError) as caught:
        choose(["startup", name])
    assert caught.value.hint


def result(native: float, ours: float) -> Result:
    return Result.of("row", "x", True, Samples([native], [ours]))


def test_targets_are_judged_by_ratio_or_by_figure() -> None:
    assert Target(least_ratio=0.6).met(result(100, 60))
    assert not Target(least_ratio=0.6).met(result(100, 59))
    assert Target(most=250).met(result(1, 250))
    assert not Target(most=250).met(result(1, 251))
    assert str(Target(least_ratio=0.6)) == "ratio ≥ 0.6"
    assert str(Target(most=250)) == "≤ 250"
