"""`xensock ps`, `ss`, `events`, `kill`: what guests do now, and the end of it.

Whatever guests chose themselves (names, programs, hosts) is shown with every character escaped that is not printable.
"""

from __future__ import annotations

import errno
import json
import queue
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from xensock.cli.errors import FAILURE, USAGE, UserError
from xensock.observe.trace import TraceWriter, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xensock.backend.asking import Backend

SCHEMA = 1
HELP = {"help_option_names": ["-h", "--help"]}
control_option = click.option(
    "--control",
    metavar="PATH",
    help="Ask the backend whose control socket is at PATH, not all of yours.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON with a schema number."
)
quiet_option = click.option(
    "-q", "--quiet", is_flag=True, help="Print identifiers alone, one a line, as `kill` takes them."
)
plain_option = click.option(
    "--plain",
    is_flag=True,
    help="Print rows alone, one a line, tabs between columns: for cut(1) and awk(1).",
)


@dataclass(frozen=True, slots=True)
class Row:
    """A guest: its name for this command is `id`."""

    id: str
    backend: Backend
    guest: dict[str, Any]


# What to do about a backend that cannot be asked.
_ASKED = {
    errno.ECONNREFUSED: "it is not running: start it again (systemctl start xensock); xensock logs says why",
    errno.ENOENT: "none was started there: check the path (backend --control PATH), or systemctl start xensock",
    errno.EACCES: "ask as the user that started it, or as root",
}


def known(control: str | None) -> list[Backend]:
    from xensock.backend.asking import AnswerError, backends

    try:
        return backends(control)
    except (OSError, AnswerError) as error:
        raise UserError(
            f"cannot ask the backend at {control}",
            getattr(error, "strerror", None) or str(error),
            _ASKED.get(
                getattr(error, "errno", None) or 0,
                "check the path: `xensock backend --control PATH`",
            ),
            FAILURE,
        ) from error


def asked(backend: Backend, command: str, key: str, **fields: Any) -> list[dict[str, Any]]:
    """What a backend lists; nothing once it has ended."""
    from xensock.backend.asking import AnswerError

    try:
        found: list[dict[str, Any]] = backend.ask(command, **fields)[key]
    except (OSError, AnswerError, ValueError):
        return []
    return found


def guests(control: str | None) -> list[Row]:
    """All guests of the backends."""
    return guests_of(known(control))


def guests_of(backends: Sequence[Backend]) -> list[Row]:
    """All guests of these backends."""
    return [
        Row(f"{backend.pid}.{guest['guest']}", backend, guest)
        for backend in backends
        for guest in asked(backend, "guests", "guests")
    ]


def sockets(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Their sockets; `connection` names one for `xensock kill`."""
    return [
        {
            **one,
            "connection": f"{row.id}/{one['id']}",
            "guest": row.id,
            "guest_name": row.guest["name"],
        }
        for row in rows
        for one in asked(row.backend, "sockets", "sockets", guest=row.guest["guest"])
        if one.get("guest", row.guest["guest"]) == row.guest["guest"]
    ]


def _print(key: str, rows: Sequence[dict[str, Any]]) -> None:
    click.echo(json.dumps({"schema": SCHEMA, key: rows}, indent=2))


def _print_lines(ids: Sequence[str]) -> None:
    for each in ids:
        click.echo(each)


def table(head: Sequence[str], lines: Sequence[Sequence[object]], plain: bool = False) -> None:
    """Aligned columns under their heads; what is not there is a dash. `plain`: tabs between columns, and no heads."""
    rows = [
        ["-" if cell is None or cell == "" else printable(str(cell)) for cell in line]
        for line in lines
    ]
    if plain:
        _print_lines(["\t".join(row) for row in rows])
        return
    rows.insert(0, list(head))
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    for row in rows:
        click.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def ago(seconds: float) -> str:
    """A time span, roughly."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


@click.command(context_settings=HELP)
@json_option
@plain_option
@quiet_option
@control_option
def ps(control: str | None, as_json: bool, plain: bool, quiet: bool) -> None:
    """List the guests of your runs and backends."""
    rows = guests(control)
    if quiet:
        _print_lines([row.id for row in rows])
        return
    if as_json:
        _print(
            "guests", [{**row.guest, "guest": row.id, "backend": row.backend.pid} for row in rows]
        )
        return
    table(
        ("GUEST", "NAME", "BACKEND", "USER", "PROCESSES", "SOCKETS", "SINCE"),
        [
            (
                row.id, row.guest["name"], row.backend.pid, row.guest["uid"], row.guest.get("processes"),
                row.guest["sockets"], ago(time.time() - row.guest["since"]),
            )
            for row in rows
        ],
        plain,
    )  # fmt: skip


@click.command(context_settings=HELP)
@click.argument("guest", required=False)
@json_option
@plain_option
@quiet_option
@control_option
def ss(guest: str | None, control: str | None, as_json: bool, plain: bool, quiet: bool) -> None:
    """List the sockets of all guests, or of GUEST."""
    rows = guests(control)
    found = sockets(rows if guest is None else [one_of(rows, guest)])
    if quiet:
        _print_lines([one["connection"] for one in found])
        return
    if as_json:
        _print("sockets", found)
        return
    table(
        (
            "CONNECTION", "PROTO", "STATE", "LOCAL", "PEER", "NAME", "PATH", "SENT", "RECEIVED", "RTT",
            "PROGRAM",
        ),
        [
            (
                one["connection"], _protocol(one), one["state"], one["local"], one["peer"], one.get("name"),
                one.get("datapath", "ring"), one.get("sent"), one.get("received"), _rtt(one.get("rtt")),
                f"{one['program']}[{one['pid']}]" if one.get("pid") else one["guest_name"],
            )
            for one in found
        ],
        plain,
    )  # fmt: skip


def _protocol(one: dict[str, Any]) -> str:
    kind = one.get("protocol")
    return kind if isinstance(kind, str) else {1: "tcp", 2: "udp"}.get(one.get("type", 0), "?")


def _rtt(seconds: float | None) -> str | None:
    return None if seconds is None else f"{seconds * 1000:.2f} ms"


@click.command(context_settings=HELP)
@click.option(
    "-f", "--follow", is_flag=True, help="Keep on until interrupted; else until now's guests end."
)
@json_option
@control_option
def events(control: str | None, as_json: bool, follow: bool) -> None:
    """Show calls and the ends of connections as they happen."""
    lines: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    watched: set[str] = set()
    seen = False
    writer = TraceWriter(sys.stdout, "text")

    def watch_new() -> int:
        nonlocal seen
        try:
            there = known(control)
        except UserError:
            if not seen:
                raise
            return 0  # the one that was asked for has ended
        seen = True
        for backend in there:
            if backend.path not in watched:
                watched.add(backend.path)
                threading.Thread(
                    target=_follow, args=(backend, lines.put, watched), daemon=True
                ).start()
        return len(watched)

    while watch_new() or follow:
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            continue
        if line is not None:
            _show_event(line, writer, as_json)


def _follow(
    backend: Backend, put: Callable[[dict[str, Any] | None], None], watched: set[str]
) -> None:
    from xensock.backend.asking import AnswerError

    try:
        for line in backend.follow("events"):
            put(line)
    except (OSError, AnswerError, ValueError):
        pass
    watched.discard(backend.path)
    put(None)


def _show_event(line: dict[str, Any], writer: TraceWriter, as_json: bool) -> None:
    from xensock.calls.record import Record

    if as_json:
        click.echo(json.dumps(line))
    elif "dropped" in line:
        click.echo(f"({line['dropped']} more, which came too fast)")
    else:
        known = {
            name: value
            for name, value in line["event"].items()
            if name in Record.__dataclass_fields__
        }
        record = Record(**known)
        writer.write(record)
        if record.verb == "close":
            click.echo(f"{'':14}{record.sent} bytes sent, {record.received} received")
    sys.stdout.flush()


@click.command(context_settings=HELP)
@click.argument("targets", metavar="GUEST|CONNECTION...", nargs=-1, required=True)
@json_option
@control_option
def kill(targets: tuple[str, ...], control: str | None, as_json: bool) -> None:
    """End guests, or single connections (as `xensock ss` names them): the other end gets a reset."""
    there = guests(control)
    chosen = [(what, one_of(there, what.partition("/")[0])) for what in targets]
    for what, row in chosen:
        _kill(what, row)
        if as_json:
            click.echo(json.dumps({"schema": SCHEMA, "killed": what}))


def _kill(what: str, row: Row) -> None:
    from xensock.backend.asking import AnswerError

    _, _, number = what.partition("/")
    try:
        if number:
            if not number.isdigit():
                raise AnswerError("no-such-socket", f"{number!r} is no number of a socket")
            row.backend.ask("close", guest=row.guest["guest"], socket=int(number))
        else:
            row.backend.ask("disconnect", guest=row.guest["guest"])
    except (AnswerError, OSError) as error:
        raise UserError(
            f"cannot end {what}",
            getattr(error, "strerror", None) or str(error),
            "`xensock ss` lists the connections that there are now",
            FAILURE,
        ) from error


def one_of(rows: Sequence[Row], wanted: str) -> Row:
    """The guest of that id, or the only one of that name. Raises UserError."""
    found = [row for row in rows if row.id == wanted] or [
        row for row in rows if row.guest["name"] == wanted
    ]
    if len(found) == 1:
        return found[0]
    ids = ", ".join(row.id for row in (found or rows)) or "none"
    cause = "several are called so" if found else "no guest has this id or name"
    raise UserError(f"which guest is {wanted}?", cause, f"guests: {ids} (see `xensock ps`)", USAGE)
