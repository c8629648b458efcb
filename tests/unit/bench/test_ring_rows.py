"""The ring's rows: names that users and scripts rely on, and their targets."""

from __future__ import annotations

import pytest

from xensock.bench.interleave import Samples
from xensock.bench.result import Result
from xensock.bench.ring_rows import PLOT_SIZES, ROWS, TARGETS, plot_rows
from xensock.bench.rows import Target, choose, names

PROMISED = [
    "ring.tcp.128k",
    "ring.tcp.4k",
    "ring.tcp.3",
    "ring.tcp.rtt",
    "ring.guests.1",
    "ring.guests.3",
    "ring.guests.rtt",
]


def test_the_promised_names_exist() -> None:
    assert set(PROMISED) <= set(names(ROWS))
    assert set(TARGETS) <= set(names(ROWS))
    assert len(names(ROWS)) == len(set(names(ROWS)))


def test_what_is_to_be_reached() -> None:
    """As ratios to the kernel in the same run, above 1 being better; between three streams of guests in Gbit/s."""
    assert {name: (each.least_ratio, each.least) for name, each in TARGETS.items()} == {
        "ring.tcp.128k": (0.9, None),
        "ring.tcp.4k": (1.2, None),
        "ring.tcp.rtt": (0.5, None),
        "ring.guests.1": (2, None),
        "ring.guests.3": (None, 60),
        "ring.guests.rtt": (1, None),
    }


def test_rows_are_chosen_by_name() -> None:
    assert [row.name for row in choose(["ring.guests"], ROWS)] == PROMISED[-3:]


@pytest.mark.parametrize(("ours", "met"), [(59.9, False), (60.0, True)])
def test_a_least_figure_is_a_target(ours: float, met: bool) -> None:
    result = Result.of("ring.guests.3", "Gbit/s", True, Samples([1.0], [ours]))
    assert Target(least=60).met(result) == met
    assert str(Target(least=60)) == "≥ 60"


def test_the_plot_has_a_row_for_each_size() -> None:
    assert len(plot_rows()) == len(PLOT_SIZES)
    assert list(PLOT_SIZES) == sorted(PLOT_SIZES)
