"""`python3 -m xensock run` where nothing but Python's standard library is installed, as in a domU or a small container.

The calls are carried out elsewhere, so the options are those that concern the guest; everything else of the command
is for the backend's side, which has its dependencies.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xensock.cli import errors, front
from xensock.cli.errors import UserError, show
from xensock.cli.failures import explained, lost, opened
from xensock.streams import complete, warn

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

USAGE = (
    "python3 -m xensock run --backend [NAME=]URL [--route RULE=NAME] [--name NAME] [--trace-file FILE]"
    " -- PROGRAM [ARG]..."
)
INSTALL = "everything else needs XenSock's dependencies: pip install xensock"


@dataclass
class Wanted:
    """What was written."""

    backends: list[str] = field(default_factory=list)
    routes: list[str] = field(default_factory=list)
    name: str = ""
    trace: str = ""
    debug: bool = False
    argv: Sequence[str] = ()


def parse(arguments: Sequence[str]) -> Wanted:
    """Raises UserError."""
    if not arguments or arguments[0] != "run":
        raise UserError(
            f"`xensock {' '.join(arguments[:1])}` cannot be had here"
            if arguments
            else "no command",
            "click is not installed, so that there is `run` alone",
            f"{USAGE}; {INSTALL}",
            errors.USAGE,
        )
    wanted, rest = Wanted(), list(arguments[1:])
    while rest and rest[0].startswith("-"):
        option, equals, value = rest.pop(0).partition("=")
        if option == "--":
            break
        if option == "--debug":
            wanted.debug = True
            continue
        if option not in ("--backend", "--route", "--name", "--trace-file"):
            raise UserError(
                f"no such option here: {option}",
                "click is not installed, so that there are the guest's options alone",
                f"{USAGE}; {INSTALL}",
                errors.USAGE,
            )
        if not equals:
            if not rest:
                raise UserError(f"{option} needs a value", hint=USAGE, code=errors.USAGE)
            value = rest.pop(0)
        if option == "--backend":
            wanted.backends.append(value)
        elif option == "--route":
            wanted.routes.append(value)
        elif option == "--name":
            wanted.name = value
        else:
            wanted.trace = value
    wanted.argv = rest
    if not rest:
        raise UserError("no program to run", hint=USAGE, code=errors.USAGE)
    if not wanted.backends:
        raise UserError(
            "no --backend", "without click nothing else can be done", USAGE, errors.USAGE
        )
    return wanted


def run(wanted: Wanted) -> int:
    """The exit status, as that of `xensock run`. Raises UserError, UrlError, RuleError, CarrierError."""
    from xensock.backend.carriers import parse as parse_carriers
    from xensock.policy.deferred import Deferred
    from xensock.policy.routes import Routes

    carriers, table = parse_carriers(wanted.backends, wanted.routes)
    policy = Deferred(Routes(table, carriers[0][0]))
    stream = opened(wanted.trace) if wanted.trace else None

    def backend(group: int, job: socket.socket) -> int:
        try:
            from xensock.backend.embedded import Embedded, Order
            from xensock.observe.tap import Tap
            from xensock.observe.trace import TraceWriter

            tap = Tap()
            if stream is not None:
                tap.add(TraceWriter(stream, lost=lost(wanted.trace)).write)
            order = Order(
                wanted.argv,
                policy,
                wanted.name or os.path.basename(wanted.argv[0]),
                backends=carriers,
                routes=table,
                group=group,
                record=tap,
                detach=front.detacher(job, quiet=True),
                warn=warn,
                mirror=front.mirror(),
            )
            return Embedded(order, warn).run(job)
        except Exception as error:
            return show(explained(error), debug=wanted.debug).code

    return front.run(backend)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    complete()
    try:
        return run(parse(args))
    except (UserError, ValueError) as error:
        return errors.exit_status(show(error, debug="--debug" in args), "run")
    except KeyboardInterrupt:
        return errors.INTERRUPTED
