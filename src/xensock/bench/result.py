"""From figures to a row of the report: medians, spreads, ratios, JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xensock.bench.interleave import Samples

SCHEMA = 1


def ratio(native: float, ours: float, more_is_better: bool) -> float:
    """How ours compares: 1 is equal, above 1 is better, whichever way the unit counts."""
    if native == ours:
        return 1.0
    good, bad = (ours, native) if more_is_better else (native, ours)
    return good / bad if bad else math.inf


@dataclass(frozen=True, slots=True)
class Spread:
    """The smallest and the largest of some figures."""

    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(min(figures), max(figures))


@dataclass(frozen=True, slots=True)
class Result:
    """One row: the medians of both sides and how far single runs were from them.

    `ratio` is that of the medians; `ratios` is the spread over pairs of neighbouring runs.
    """

    name: str
    unit: str
    native: float
    ours: float
    ratio: float
    runs: int
    natives: Spread
    ourses: Spread
    ratios: Spread

    @classmethod
    def of(cls, name: str, unit: str, more_is_better: bool, samples: Samples) -> Result:
        native, ours = median(samples.native), median(samples.ours)
        pairs = [ratio(a, b, more_is_better) for a, b in zip(*samples, strict=True)]
        return cls(
            name,
            unit,
            native,
            ours,
            ratio(native, ours, more_is_better),
            len(pairs),
            Spread.of(samples.native),
            Spread.of(samples.ours),
            Spread.of(pairs),
        )

    def renamed(self, name: str) -> Result:
        """The same figures under another name."""
        return Result(
            name,
            self.unit,
            self.native,
            self.ours,
            self.ratio,
            self.runs,
            self.natives,
            self.ourses,
            self.ratios,
        )

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "unit": self.unit,
            "native": _rounded(self.native),
            "ours": _rounded(self.ours),
            "ratio": _rounded(self.ratio),
            "runs": self.runs,
            "spread": {
                "native": [_rounded(self.natives.low), _rounded(self.natives.high)],
                "ours": [_rounded(self.ourses.low), _rounded(self.ourses.high)],
                "ratio": [_rounded(self.ratios.low), _rounded(self.ratios.high)],
            },
        }


def worst(name: str, results: Iterable[Result]) -> Result:
    """The result with the smallest ratio, under another name."""
    return min(results, key=lambda result: result.ratio).renamed(name)


def report(machine: dict[str, object], results: Iterable[Result]) -> dict[str, object]:
    """The whole report, as `xensock bench run --json` prints it."""
    return {
        "schema": SCHEMA,
        "machine": machine,
        "results": [result.as_json() for result in results],
    }


def _rounded(figure: float) -> float:
    """Five significant digits: more than repeats."""
    return float(f"{figure:.5g}")
