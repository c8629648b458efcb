"""`xensock logs` and `bugreport`: what the installed backend said, and what somebody else needs to help."""

from __future__ import annotations

import os
import platform
import shutil
import sys

import click

from xensock import __version__
from xensock.cli.errors import FAILURE, UserError
from xensock.cli.looking import HELP, asked, guests_of, known


@click.command(context_settings=HELP)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option(
    "-n", "lines", type=click.IntRange(0), default=50, show_default=True, help="So many lines."
)
def logs(follow: bool, lines: int) -> None:
    """Show what the backend that `xensock install --systemd` set up wrote to the journal.

    As root the system's, otherwise your own. A backend that you started yourself writes to its stderr, or to its
    --log-file.
    """
    from xensock.backend.installing import NAME

    journal = shutil.which("journalctl")
    if journal is None:
        raise UserError(
            "there is no journal here",
            "journalctl was not found: this machine does not run systemd",
            "start `xensock backend --log-file FILE …`, and read that",
            FAILURE,
        )
    whose = [] if os.geteuid() == 0 else ["--user"]
    words = [journal, *whose, "--unit", f"{NAME}.service", "--lines", str(lines), "--no-pager"]
    sys.stdout.flush()
    os.execv(journal, [*words, *(["--follow"] if follow else [])])


@click.command(context_settings=HELP)
def bugreport() -> None:
    """Print what a report of a fault needs: versions, the machine, the doctor's findings, what runs.

    Names of guests, their destinations and rules are not in it.
    """
    from xensock.doctor import checks

    found = checks.run_checks()
    click.echo(f"xensock {__version__}")
    click.echo(f"Python {platform.python_version()}")
    click.echo(f"Linux {platform.release()} {platform.version()} {platform.machine()}")
    click.echo(f"user {'root' if os.geteuid() == 0 else 'ordinary'}")
    click.echo(f"data paths {', '.join(checks.data_paths(found)) or 'none'}")
    for check in found:
        click.echo(f"{check.state:4} {check.name}: {check.detail}")
    backends = known(None)
    rows = guests_of(backends)
    click.echo(f"backends {len(backends)}, guests {len(rows)}")
    for backend in backends:
        of = [row for row in rows if row.backend == backend]
        refused = len(asked(backend, "denials", "denials"))
        held = sum(int(row.guest["sockets"]) for row in of)
        click.echo(f"backend {backend.pid}: {len(of)} guests, {held} sockets, {refused} refused")
    variables = sorted(name for name in os.environ if name.startswith("XENSOCK"))
    click.echo(f"set in the environment: {', '.join(variables) or 'nothing'}")
