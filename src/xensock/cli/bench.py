"""`xensock bench`: native against XenSock, as a table or JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from xensock.cli.errors import FAILURE, USAGE, UserError
from xensock.cli.terminal import colour_wanted

if TYPE_CHECKING:
    from xensock.bench.result import Result

RUNS, QUICK_RUNS = 9, 3

EPILOG = """\b
Examples:
  xensock bench run
  xensock bench run --quick --only startup --only direct.rtt
  xensock bench run --only direct --json
"""


@click.group()
def bench() -> None:
    """Measure XenSock against the native network."""


@bench.command(epilog=EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print JSON with a schema number.")
@click.option("--quick", is_flag=True, help="Shorter and fewer runs: a look, not a measurement.")
@click.option(
    "--only",
    multiple=True,
    metavar="NAME",
    help="Only this row and those below it; several with commas. Repeatable.",
)
@click.option("--runs", type=click.IntRange(1, 100), help="Figures to take of each side.")
@click.pass_context
def run(
    ctx: click.Context, as_json: bool, quick: bool, only: tuple[str, ...], runs: int | None
) -> None:
    """Measure native and XenSock in turns; show medians, their ratio and its spread.

    A ratio above 1 means that XenSock is better, whatever the unit. Other work on the machine
    disturbs both sides; the spread tells how much.
    """
    from xensock.bench import machine, result, rows, session
    from xensock.bench.failure import BenchError
    from xensock.bench.progress import Progress
    from xensock.bench.side import Setting, xensock

    wanted = [name.strip() for text in only for name in text.split(",") if name.strip()]
    try:
        chosen = rows.choose(wanted)
    except BenchError as error:
        raise UserError(error.what, error.cause, error.hint, USAGE) from error
    progress = Progress(sys.stderr)
    try:
        address = machine.host_address()
        setting = Setting(xensock(), address)
        if quick:
            setting = Setting(xensock(), address, trips=5_000, held=2_000)
        facts = machine.facts(address)
        results = session.measure(
            chosen, setting, runs or (QUICK_RUNS if quick else RUNS), progress.tell
        )
    except BenchError as error:
        raise UserError(error.what, error.cause, error.hint, FAILURE) from error
    finally:
        progress.clear()
    if as_json:
        click.echo(json.dumps(result.report(facts, results), indent=2, ensure_ascii=False))
    else:
        _print(facts, results)


def _print(facts: dict[str, object], results: list[Result]) -> None:
    from xensock.bench.rows import TARGETS

    colour = colour_wanted(sys.stdout)
    click.echo(
        f"xensock {facts['xensock']}, Linux {facts['kernel']}, {facts['processors']} x "
        f"{facts['processor']}, load {facts['load']}, over {facts['address']}\n"
    )
    table = [["row", "unit", "native", "xensock", "ratio", "spread", "target"]]
    for row in results:
        target = TARGETS.get(row.name)
        mark = "" if target is None else f"{'✓' if target.met(row) else '✗'} {target}"
        spread = f"{_figure(row.ratios.low)} to {_figure(row.ratios.high)}"
        table.append(
            [
                row.name,
                row.unit,
                *map(_figure, (row.native, row.ours, row.ratio)),
                spread,
                mark,
            ]
        )
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        cells = [
            f"{cell:>{width}}" if 2 <= i <= 4 else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text = "  ".join(cells).rstrip()
        if colour and "✗" in text:
            text = text.replace("✗", click.style("✗", fg="red", bold=True))
        elif colour:
            text = text.replace("✓", click.style("✓", fg="green", bold=True))
        click.echo(text, color=colour)


def _figure(value: float) -> str:
    """Three digits that matter; no exponents."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
