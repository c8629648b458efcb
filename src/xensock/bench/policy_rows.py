"""The rows of `xensock bench policy`."""

from __future__ import annotations

from functools import partial

from xensock.bench import policy
from xensock.bench.rows import Row, Target

ROWS: tuple[Row, ...] = (
    *(
        Row(f"policy.{count}", "µs", False, partial(policy.decisions, count=count))
        for count in (10, 1_000, 10_000)
    ),
    Row(
        "policy.connections",
        "requests/s",
        True,
        partial(policy.connections, count=1_000),
        ("wrk", "nginx"),
    ),
)

TARGETS = {
    "policy.10000": Target(most=5),
    "policy.connections": Target(least_ratio=0.95),
}
