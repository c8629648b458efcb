"""The rows of the report: what each measures, in which unit, and the target it has."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from xensock.bench import apart, http, memory, rtt, startup, throughput
from xensock.bench.failure import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from xensock.bench.interleave import Pair
    from xensock.bench.result import Result
    from xensock.bench.side import Setting


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. Rows of the same `part_of` are also reported as one: the worst of them."""

    name: str
    unit: str
    more_is_better: bool
    measure: Callable[[Setting], AbstractContextManager[Pair]]
    tools: tuple[str, ...] = ()
    part_of: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """What a row is to reach: a least ratio, a most or least of its own figure, or a most of what that adds to the
    native one."""

    least_ratio: float | None = None
    most: float | None = None
    least: float | None = None
    most_added: float | None = None

    def __str__(self) -> str:
        if self.most_added is not None:
            return f"≤ {self.most_added:g} added"
        if self.least is not None:
            return f"≥ {self.least:g}"
        return f"ratio ≥ {self.least_ratio}" if self.most is None else f"≤ {self.most:g}"

    def met(self, result: Result) -> bool:
        if self.most_added is not None:
            return result.ours - result.native <= self.most_added
        if self.most is not None:
            return result.ours <= self.most
        if self.least is not None:
            return result.ours >= self.least
        return self.least_ratio is None or result.ratio >= self.least_ratio


def _throughput(datapath: str, streams: int) -> list[Row]:
    name = f"{datapath}.throughput.{streams}"
    ways: dict[str, Callable[[Setting], AbstractContextManager[Pair]]] = {
        "out": partial(throughput.sending, datapath=datapath, streams=streams, reverse=False),
        "in": partial(throughput.sending, datapath=datapath, streams=streams, reverse=True),
        "served": partial(throughput.served, datapath=datapath, streams=streams),
    }
    return [
        Row(f"{name}.{way}", "Gbit/s", True, measure, ("iperf3",), name)
        for way, measure in ways.items()
    ]


def _http(datapath: str, kept: bool) -> Row:
    return Row(
        f"{datapath}.http.{'kept' if kept else 'new'}",
        "requests/s",
        True,
        partial(http.requests, datapath=datapath, kept=kept),
        ("wrk", "nginx"),
    )


ROWS: tuple[Row, ...] = (
    *_throughput("direct", 1),
    *_throughput("direct", 3),
    _http("direct", kept=True),
    _http("direct", kept=False),
    Row("direct.rtt", "µs", False, partial(rtt.round_trips, datapath="direct")),
    *_throughput("relay", 1),
    _http("relay", kept=False),
    Row("audit", "requests/s", True, http.audited, ("wrk", "nginx", *apart.TOOLS)),
    Row("audit.here", "requests/s", True, http.audited_here, ("wrk", "nginx")),
    Row("startup", "ms", False, startup.startup),
    Row("memory", "B/connection", False, memory.idle_connections),
)

TARGETS = {
    "direct.throughput.1": Target(least_ratio=0.95),
    "direct.throughput.3": Target(least_ratio=0.95),
    "direct.http.kept": Target(least_ratio=0.95),
    "direct.http.new": Target(least_ratio=0.6),
    "relay.throughput.1": Target(least_ratio=0.55),
    "audit": Target(least_ratio=0.95),
    "startup": Target(most=250),
    "memory": Target(most=2048),
}


def names(rows: Sequence[Row] = ROWS) -> list[str]:
    """The names that the report has when all rows are chosen, in its order."""
    return list(dict.fromkeys(name for row in rows for name in (row.part_of, row.name) if name))


def choose(wanted: Sequence[str], rows: Sequence[Row] = ROWS) -> list[Row]:
    """Those of `rows` that have these names; a name also stands for all rows below it. All, if none
    is given.

    Raises BenchError for a name that no row has.
    """
    if not wanted:
        return list(rows)
    for name in wanted:
        if not any(_covers(name, row) for row in rows):
            close = difflib.get_close_matches(name, names(rows), n=1)
            raise BenchError(
                f"no such row: {name}",
                hint=f"did you mean {close[0]}?" if close else f"rows: {', '.join(names(rows))}",
            )
    return [row for row in rows if any(_covers(name, row) for name in wanted)]


def _covers(name: str, row: Row) -> bool:
    return row.name == name or row.name.startswith(f"{name}.")
