"""A run of the bench: its rows one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xensock.bench.failure import BenchError
from xensock.bench.interleave import interleaved
from xensock.bench.process import tool
from xensock.bench.result import Result, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xensock.bench.rows import Row
    from xensock.bench.side import Setting


def check_tools(rows: Sequence[Row]) -> None:
    """See before anything is measured that nothing is missing. Raises BenchError."""
    for name in dict.fromkeys(name for row in rows for name in row.tools):
        tool(name)


def measure(
    rows: Sequence[Row], setting: Setting, runs: int, tell: Callable[[str], None]
) -> list[Result]:
    """Measure the rows; `tell` hears what happens now. Raises BenchError."""
    check_tools(rows)
    results: list[Result] = []
    for place, row in enumerate(rows, 1):

        def progress(run: int, side: str, place: int = place, row: Row = row) -> None:
            tell(f"[{place}/{len(rows)}] {row.name}: run {run} of {runs}, {side}")

        try:
            with row.measure(setting) as pair:
                samples = interleaved(pair, runs, progress)
        except BenchError as error:
            raise BenchError(f"{row.name}: {error.what}", error.cause, error.hint) from error
        results.append(Result.of(row.name, row.unit, row.more_is_better, samples))
    return with_worst(rows, results)


def with_worst(rows: Sequence[Row], results: Sequence[Result]) -> list[Result]:
    """The results, before each group of parts the worst of the group under its common name."""
    found = dict(zip((row.name for row in rows), results, strict=True))
    out: list[Result] = []
    told: set[str] = set()
    for row in rows:
        group = row.part_of
        if group and group not in told:
            told.add(group)
            out.append(
                worst(group, [found[other.name] for other in rows if other.part_of == group])
            )
        out.append(found[row.name])
    return out
