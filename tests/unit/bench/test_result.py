"""Medians, ratios, spreads, and the report's JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.bench.interleave import Samples
from xensock.bench.result import Result, Spread, ratio, report, worst

FIGURES = st.floats(min_value=0.01, max_value=1e9)


@pytest.mark.parametrize(
    ("native", "ours", "more", "expected"),
    [
        (100, 50, True, 0.5),
        (50, 100, True, 2),
        (100, 50, False, 2),
        (50, 100, False, 0.5),
        (7, 7, True, 1),
        (0, 0, False, 1),
        (0, 12, False, 0),  # memory of a backend that a native program does not have
    ],
)
def test_above_one_is_better(native: float, ours: float, more: bool, expected: float) -> None:
    assert ratio(native, ours, more) == expected


@given(native=FIGURES, ours=FIGURES, more=st.booleans())
def test_a_ratio_tells_who_is_better(native: float, ours: float, more: bool) -> None:
    better = ours > native if more else ours < native
    assert (ratio(native, ours, more) > 1) == better
    assert ratio(native, ours, more) == pytest.approx(ratio(ours, native, not more))


def test_a_result_has_medians_and_the_spread_of_pairs() -> None:
    result = Result.of("row", "ms", True, Samples([10, 12, 11], [5, 24, 11]))
    assert (result.native, result.ours, result.ratio, result.runs) == (11, 11, 1, 3)
    assert result.natives == Spread(10, 12)
    assert result.ourses == Spread(5, 24)
    assert result.ratios == Spread(0.5, 2)


def test_one_side_may_not_have_fewer_figures() -> None:
    with pytest.raises(ValueError, match="zip"):
        Result.of("row", "ms", True, Samples([1, 2], [1]))


def test_the_worst_has_the_smallest_ratio() -> None:
    good = Result.of("a", "ms", False, Samples([10], [5]))
    bad = Result.of("b", "ms", False, Samples([10], [20]))
    assert worst("both", [good, bad]).as_json() == {**bad.as_json(), "name": "both"}


def test_the_report_is_json_of_the_promised_shape() -> None:
    result = Result.of("row", "µs", False, Samples([1.23456789, 1.3], [2.0, 2.2]))
    text = json.dumps(report({"kernel": "6.1"}, [result]), allow_nan=False)
    read = json.loads(text)
    assert read["schema"] == 1
    assert read["machine"] == {"kernel": "6.1"}
    (row,) = read["results"]
    assert row["name"] == "row"
    assert row["unit"] == "µs"
    assert row["native"] == pytest.approx(1.2673, rel=1e-4)
    assert row["ours"] == 2.1
    assert row["ratio"] == pytest.approx(1.2673 / 2.1, rel=1e-3)
    assert row["runs"] == 2
    assert set(row["spread"]) == {"native", "ours", "ratio"}
    assert row["spread"]["ours"] == [2.0, 2.2]
