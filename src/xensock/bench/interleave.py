"""Measuring two sides in turns: A B A B …

What else the machine does changes from second to second. Taken in turns, both sides meet the same
weather, and each pair of neighbours can be compared by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Pair(NamedTuple):
    """What takes one figure of each side."""

    native: Callable[[], float]
    ours: Callable[[], float]


class Samples(NamedTuple):
    """The figures of both sides, in the order they were taken."""

    native: list[float]
    ours: list[float]


def interleaved(pair: Pair, runs: int, tell: Callable[[int, str], None]) -> Samples:
    """Take `runs` figures of each side in turns; `tell(run, side)` is called before each."""
    samples = Samples([], [])
    for run in range(1, runs + 1):
        tell(run, "native")
        samples.native.append(pair.native())
        tell(run, "xensock")
        samples.ours.append(pair.ours())
    return samples
