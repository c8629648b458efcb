"""The rows of `xensock bench ring`, and what they are to reach."""

from __future__ import annotations

from functools import partial

from xensock.bench import ring
from xensock.bench.ring import BULK
from xensock.bench.rows import Row, Target

ROWS: tuple[Row, ...] = (
    Row("ring.tcp.128k", "Gbit/s", True, partial(ring.throughput, size=BULK, streams=1)),
    Row("ring.tcp.4k", "Gbit/s", True, partial(ring.throughput, size=4096, streams=1)),
    Row("ring.tcp.3", "Gbit/s", True, partial(ring.throughput, size=BULK, streams=3)),
    Row("ring.python.128k", "Gbit/s", True, partial(ring.python, size=BULK)),
    Row("ring.python.4k", "Gbit/s", True, partial(ring.python, size=4096)),
    Row("ring.tcp.rtt", "µs", False, ring.round_trips),
    Row("ring.tcp.messages", "1/s", True, ring.messages),
    Row("ring.tcp.connections", "1/s", True, ring.connections),
    Row("ring.tcp.memory", "B/connection", False, ring.idle_connections),
    Row(
        "ring.guests.1", "Gbit/s", True, partial(ring.throughput, size=BULK, streams=1, guests=True)
    ),
    Row(
        "ring.guests.3", "Gbit/s", True, partial(ring.throughput, size=BULK, streams=3, guests=True)
    ),
    Row("ring.guests.rtt", "µs", False, partial(ring.round_trips, guests=True)),
)

TARGETS = {
    "ring.tcp.128k": Target(least_ratio=0.9),
    "ring.tcp.4k": Target(least_ratio=1.2),
    "ring.tcp.rtt": Target(least_ratio=0.5),
    "ring.guests.1": Target(least_ratio=2),
    "ring.guests.3": Target(least=60),
    "ring.guests.rtt": Target(least_ratio=1),
}

PLOT_SIZES = (64, 256, 1024, 4096, 16384, 65536, BULK, 4 * BULK, 8 * BULK)
"""Bytes of a write, of each point of the plot."""


def plot_rows() -> list[Row]:
    """Throughput of one stream to TCP by the size of a write, for the plot."""
    return [
        Row(f"ring.plot.{size}", "Gbit/s", True, partial(ring.throughput, size=size, streams=1))
        for size in PLOT_SIZES
    ]
