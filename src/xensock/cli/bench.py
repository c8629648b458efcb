"""`xensock bench`: native against XenSock, as a table or JSON."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from xensock.cli.errors import FAILURE, USAGE, UserError
from xensock.cli.group import Group
from xensock.cli.terminal import colour_wanted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xensock.bench.result import Result
    from xensock.bench.rows import Row, Target

RUNS, QUICK_RUNS = 9, 3


@click.group(cls=Group)
def bench() -> None:
    """Measure XenSock against the native network."""


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that all benches have."""
    for option in (
        click.option("--runs", type=click.IntRange(1, 100), help="Figures to take of each side."),
        click.option(
            "--only",
            multiple=True,
            metavar="NAME",
            help="Only this row and those below it; several with commas. Repeatable.",
        ),
        click.option(
            "--quick", is_flag=True, help="Shorter and fewer runs: a look, not a measurement."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON with a schema number."),
    ):
        command = option(command)
    return command


@bench.command()
@_options
def run(as_json: bool, quick: bool, only: tuple[str, ...], runs: int | None) -> None:
    """Measure native and XenSock in turns; show medians, their ratio and its spread.

    A ratio above 1 means that XenSock is better, whatever the unit. Other work on the machine
    disturbs both sides; the spread tells how much.
    """
    from xensock.bench import rows

    facts, results = _measure(_chosen(only, rows.ROWS), quick, runs)
    _show(facts, results, rows.TARGETS, as_json)


@bench.command()
@_options
@click.option(
    "--plot", metavar="FILE", help="Draw throughput against write size, both sides, as SVG."
)
def ring(
    as_json: bool, quick: bool, only: tuple[str, ...], runs: int | None, plot: str | None
) -> None:
    """Measure the kernel's sockets and libxensock over shared memory in turns.

    A guest to TCP, and a guest to another one of the same backend. A ratio above 1 means that
    XenSock is better, whatever the unit.
    """
    from xensock.bench import ring_rows

    chosen = _chosen(only, ring_rows.ROWS)
    if plot is not None:
        _check_writable(plot)
    facts, results = _measure(chosen, quick, runs)
    if plot is not None:
        _draw(plot, quick, runs)
    _show(facts, results, ring_rows.TARGETS, as_json)


@bench.command()
@_options
def policy(as_json: bool, quick: bool, only: tuple[str, ...], runs: int | None) -> None:
    """Measure what a policy costs: without rules, and with many, in turns.

    A decision's time in µs, for calls by address, by name, and that no rule is about; and new
    connections per second of a guest with a policy file.
    """
    from xensock.bench import policy_rows

    facts, results = _measure(_chosen(only, policy_rows.ROWS), quick, runs)
    _show(facts, results, policy_rows.TARGETS, as_json)


@bench.command()
@_options
def containers(as_json: bool, quick: bool, only: tuple[str, ...], runs: int | None) -> None:
    """Measure the start of a container: the engine's own runtime, and ours in front of it, in turns.

    Docker has to know the runtime and a backend has to run for it (xensock install); Podman gets
    a backend of the bench's own.
    """
    from xensock.bench import container_rows

    facts, results = _measure(_chosen(only, container_rows.ROWS), quick, runs)
    _show(facts, results, container_rows.TARGETS, as_json)


@bench.command()
@_options
@click.argument("address", metavar="ADDRESS:PORT")
@click.option("--backend", "url", default="xen:", show_default=True, metavar="URL")
@click.option("--serve", is_flag=True, help="Be the far end, at that address, until interrupted.")
def xen(
    as_json: bool,
    quick: bool,
    only: tuple[str, ...],
    runs: int | None,
    address: str,
    url: str,
    serve: bool,
) -> None:
    """Measure a domU's network interface and its PV Calls device in turns.

    ADDRESS:PORT is an IPv4 address of the backend's domain that both reach, where the far end
    serves. A ratio above 1 means that XenSock is better, whatever the unit.
    """
    from xensock.bench import xen_rows

    host, port = _endpoint(address)
    if serve:
        _serve(host, port)
        return
    chosen = _chosen(
        only, xen_rows.rows((host, port), url, xen_rows.QUICK if quick else xen_rows.Size())
    )
    facts, results = _measure(chosen, quick, runs, host)
    _show(facts, results, xen_rows.TARGETS, as_json)


def _endpoint(text: str) -> tuple[str, int]:
    import ipaddress

    host, _, port = text.rpartition(":")
    try:
        ipaddress.IPv4Address(host)
        if port.isascii() and port.isdigit() and 0 < int(port) < 65536:
            return host, int(port)
    except ValueError:
        pass
    raise UserError(
        f"{text!r} is no address with a port", "", "write it like 192.0.2.1:7007", USAGE
    )


def _serve(host: str, port: int) -> None:
    import socket

    from xensock.bench import xen_far

    try:
        listener = socket.create_server((host, port), backlog=64)
    except OSError as error:
        raise UserError(
            f"cannot serve at {host}:{port}",
            error.strerror or str(error),
            "name an address of this host and a port that is free",
            FAILURE,
        ) from error
    with listener:
        click.echo(f"serving at {host}:{port}")
        xen_far.serve(listener)


def _chosen(only: Sequence[str], of: Sequence[Row]) -> list[Row]:
    from xensock.bench import rows
    from xensock.bench.failure import BenchError

    wanted = [name.strip() for text in only for name in text.split(",") if name.strip()]
    try:
        return rows.choose(wanted, of)
    except BenchError as error:
        raise UserError(error.what, error.cause, error.hint, USAGE) from error


def _measure(
    chosen: Sequence[Row], quick: bool, runs: int | None, far: str = ""
) -> tuple[dict[str, object], list[Result]]:
    from ipaddress import IPv4Address

    from xensock.bench import machine, session
    from xensock.bench.failure import BenchError
    from xensock.bench.progress import Progress
    from xensock.bench.side import Setting, xensock

    progress = Progress(sys.stderr)
    try:
        address = IPv4Address(far) if far else machine.host_address()
        # What has a far end is measured in this process.
        command = "" if far else xensock()
        setting = Setting(command, address)
        if quick:
            setting = Setting(command, address, seconds=1, trips=5_000, held=2_000)
        facts = machine.facts(address)
        count = runs or (QUICK_RUNS if quick else RUNS)
        return facts, session.measure(chosen, setting, count, progress.tell)
    except BenchError as error:
        raise UserError(error.what, error.cause, error.hint, FAILURE) from error
    finally:
        progress.clear()


def _check_writable(path: str) -> None:
    """Before minutes of measuring."""
    try:
        open(path, "a").close()
    except OSError as error:
        raise UserError(
            f"cannot write {path}",
            error.strerror or str(error),
            "name a file in a directory that you may write to",
            USAGE,
        ) from error


def _draw(path: str, quick: bool, runs: int | None) -> None:
    from xensock.bench import plot, ring_rows

    _, results = _measure(ring_rows.plot_rows(), quick, runs)
    picture = plot.svg(
        "One stream to TCP: libxensock and the kernel",
        ring_rows.PLOT_SIZES,
        [
            plot.Line("XenSock", "#06c", [result.ours for result in results]),
            plot.Line("native", "#c60", [result.native for result in results]),
        ],
    )
    with open(path, "w", encoding="utf-8") as out:
        out.write(picture)


def _show(
    facts: dict[str, object], results: list[Result], targets: Mapping[str, Target], as_json: bool
) -> None:
    from xensock.bench import result

    if as_json:
        click.echo(json.dumps(result.report(facts, results), indent=2, ensure_ascii=False))
    else:
        _print(facts, results, targets)


def _print(facts: dict[str, object], results: list[Result], targets: Mapping[str, Target]) -> None:
    colour = colour_wanted(sys.stdout)
    click.echo(
        f"xensock {facts['xensock']}, Linux {facts['kernel']}, {facts['processors']} x "
        f"{facts['processor']}, load {facts['load']}, over {facts['address']}\n"
    )
    table = [["row", "unit", "native", "xensock", "ratio", "spread", "target"]]
    for row in results:
        target = targets.get(row.name)
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
