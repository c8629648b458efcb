"""Two sides are measured in turns."""

from __future__ import annotations

import pytest

from xensock.bench.interleave import Pair, interleaved


def test_sides_take_turns() -> None:
    order: list[str] = []
    figures = iter(range(100))

    def side(name: str) -> float:
        order.append(name)
        return float(next(figures))

    told: list[tuple[int, str]] = []
    samples = interleaved(
        Pair(lambda: side("A"), lambda: side("B")), 3, lambda run, name: told.append((run, name))
    )
    assert order == ["A", "B"] * 3
    assert samples.native == [0, 2, 4]
    assert samples.ours == [1, 3, 5]
    assert told == [(run, name) for run in (1, 2, 3) for name in ("native", "xensock")]


def test_a_failure_ends_it() -> None:
    def fails() -> float:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        interleaved(Pair(lambda: 1.0, fails), 3, lambda run, name: None)
