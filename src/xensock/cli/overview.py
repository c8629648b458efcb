"""`xensock status`, `top`, `inspect`: all guests in one screen, once or again and again, and one guest in full."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from xensock.cli.looking import (
    HELP,
    SCHEMA,
    ago,
    asked,
    control_option,
    guests,
    guests_of,
    json_option,
    known,
    one_of,
    plain_option,
    sockets,
    table,
)
from xensock.observe.trace import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xensock.backend.asking import Backend
    from xensock.cli.looking import Row

MOMENT = 0.2  # seconds over which `status` looks how many bytes move
SHOWN = 5  # refused calls in one screen
CLEAR = "\x1b[H\x1b[2J\x1b[3J"  # ECMA-48: the cursor to the first column, what is shown and was shown erased


@dataclass(slots=True)
class Look:
    """What there is at one moment. `rates`: bytes per second from and to each guest since the look before."""

    backends: list[Backend]
    rows: list[Row]
    sockets: list[dict[str, Any]]
    denials: list[dict[str, Any]]
    when: float
    rates: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def states(self) -> dict[str, int]:
        """How many sockets are in each state."""
        states: dict[str, int] = {}
        for one in self.sockets:
            states[one["state"]] = states.get(one["state"], 0) + 1
        return states

    def since(self, before: Look) -> Look:
        """This look, with the rates since another one."""
        then = {one["connection"]: one for one in before.sockets}
        span = max(self.when - before.when, 1e-3)
        moved = {row.id: [0, 0] for row in self.rows}
        for one in self.sockets:
            was = then.get(one["connection"], {})
            for at, way in enumerate(("sent", "received")):
                grown = (one.get(way) or 0) - (was.get(way) or 0)
                moved.setdefault(one["guest"], [0, 0])[at] += max(grown, 0)
        self.rates = {guest: (out / span, back / span) for guest, (out, back) in moved.items()}
        return self


def look(control: str | None) -> Look:
    """Ask all backends, or the one at `control` (raises UserError)."""
    backends = known(control)
    rows = guests_of(backends)
    told = [(backend, asked(backend, "denials", "denials")) for backend in backends]
    last = [{**each, "backend": backend.pid} for backend, some in told for each in some]
    last.sort(key=lambda each: -each["time"])
    return Look(backends, rows, sockets(rows), last, time.monotonic())


@click.command(context_settings=HELP)
@json_option
@control_option
def status(control: str | None, as_json: bool) -> None:
    """Show backends, guests, what they have open and move, and what was refused last, in one screen."""
    now = look(control)
    if now.rows:
        time.sleep(MOMENT)
        now = look(control).since(now)
    if as_json:
        told = {
            "backends": [one.pid for one in now.backends],
            "guests": len(now.rows),
            "sockets": now.states,
            "rates": {
                guest: {"sent": out, "received": back} for guest, (out, back) in now.rates.items()
            },
            "denials": now.denials,
        }
        click.echo(json.dumps({"schema": SCHEMA, **told}, indent=2))
        return
    click.echo("\n".join(_screen(now)))


def _screen(now: Look) -> Iterator[str]:
    yield f"backends  {len(now.backends)}"
    yield f"guests    {len(now.rows)}"
    for row in now.rows:
        count = sum(one["guest"] == row.id for one in now.sockets)
        age = ago(time.time() - row.guest["since"])
        out, back = now.rates.get(row.id, (0, 0))
        yield (
            f"          {row.id}  {printable(row.guest['name'])}, {count} sockets, for {age}, "
            f"{amount(out)}/s out, {amount(back)}/s in"
        )
    yield f"sockets   {len(now.sockets)}"
    for state, count in sorted(now.states.items()):
        yield f"          {count} {printable(state)}"
    if now.denials:
        yield "refused last"
        yield from _denials(now.denials[:SHOWN])


def _denials(some: Sequence[dict[str, Any]]) -> Iterator[str]:
    for each in some:
        what = f"{each['program']}[{each['pid']}] {each['verb']} {each['target']}"
        name = f" ({each['name']})" if each.get("name") else ""
        why = " ".join(filter(None, (each["rule"], each["source"])))
        line = f"{ago(time.time() - each['time'])} ago, {each['guest']}: {what}{name}: {why}"
        yield f"          {printable(line)}"
        if each["hint"]:
            yield f"          {'':4}{printable(each['hint'])}"


def amount(count: float) -> str:
    """A number of bytes, roughly."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


@click.command(context_settings=HELP)
@click.option(
    "--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, metavar="SECONDS",
    help="Between two looks.",
)  # fmt: skip
@click.option(
    "-n", "count", type=click.IntRange(1), metavar="N",
    help="End after N looks; else at Ctrl-C, or after one if the output is no terminal.",
)  # fmt: skip
@plain_option
@control_option
def top(control: str | None, interval: float, count: int | None, plain: bool) -> None:
    """Show the guests by what they move, again and again."""
    clear = sys.stdout.isatty() and not plain
    left = count if count is not None else None if clear else 1
    before = look(control)
    while left is None or left > 0:
        time.sleep(interval)
        now = look(control).since(before)
        if clear:
            click.echo(CLEAR, nl=False)
        if not plain:
            click.echo(
                f"{len(now.backends)} backends, {len(now.rows)} guests, {len(now.sockets)} sockets, "
                f"{len(now.denials)} refused of late"
            )
        rows = sorted(now.rows, key=lambda row: -sum(now.rates.get(row.id, (0, 0))))
        table(
            ("GUEST", "NAME", "OUT/S", "IN/S", "SOCKETS", "PROCESSES", "SINCE"),
            [
                (
                    row.id, row.guest["name"], *map(amount, now.rates.get(row.id, (0, 0))),
                    row.guest["sockets"], row.guest.get("processes"),
                    ago(time.time() - row.guest["since"]),
                )
                for row in rows
            ],
            plain,
        )  # fmt: skip
        before = now
        left = None if left is None else left - 1


@click.command(context_settings=HELP)
@click.argument("guest")
@control_option
def inspect(guest: str, control: str | None) -> None:
    """Print all that is known of a guest, as JSON: itself, its sockets, its calls that were refused last."""
    row = one_of(guests(control), guest)
    refused = [
        each
        for each in asked(row.backend, "denials", "denials")
        if each["guest"] == row.guest["name"]
    ]
    told = {
        "guest": {**row.guest, "guest": row.id, "backend": row.backend.pid},
        "sockets": sockets([row]),
        "denials": refused,
    }
    click.echo(json.dumps({"schema": SCHEMA, **told}, indent=2))
