"""`xensock doctor`: the checks as rows or JSON."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import click

from xensock import __version__
from xensock.cli.terminal import colour_wanted
from xensock.doctor import checks, remedies

MARKS = {"ok": "✓", "warn": "!", "fail": "✗"}
COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON with a schema number.")
@click.option("--fix", is_flag=True, help="Ask about each remedy that is a command, and run it.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, fix: bool) -> None:
    """Check what this machine offers to XenSock.

    Each kernel feature is tried for real, in processes that vanish again; each one that is missing
    comes with the command that gives it back. Exit status: 0 healthy (a `!` is advice only),
    1 not.
    """
    found = _checked()
    if fix and _fixed(found):
        found = _checked()
    paths = checks.data_paths(found)
    if as_json:
        report = {
            "schema": 1,
            "version": __version__,
            "platform": _platform(),
            "healthy": checks.healthy(found),
            "datapaths": paths,
            "checks": [check._asdict() for check in found],
        }
        click.echo(json.dumps(report, indent=2))
    else:
        _print(found, paths)
    ctx.exit(0 if checks.healthy(found) else 1)


def _checked() -> list[checks.Check]:
    found = checks.run_checks()
    try:
        from xensock.backend.installed import row
        from xensock.backend.installing import Places

        found.append(row(Places.here()))
    except (ImportError, RuntimeError):
        pass  # the C core is missing, as a row says; or a user without a home, who has installed nothing
    return found


def _fixed(found: list[checks.Check]) -> bool:
    """Ask about each remedy, on stderr, and run those that are wanted; whether anything was run."""
    ran = False
    for remedy in dict.fromkeys(check.remedy for check in found if check.state != "ok"):
        command = remedies.command(remedy)
        if command is None or not click.confirm(f"run `{command}`?", err=True):
            continue
        ran = True
        status = subprocess.run(["sh", "-c", command], stdout=sys.stderr, check=False).returncode
        if status:
            click.echo(f"it failed with exit status {status}", err=True)
    return ran


def _platform() -> dict[str, str]:
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "system": _distribution(),
        "python": platform.python_version(),
    }


def _distribution() -> str:
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith("PRETTY_NAME="):
                return line.split("=", 1)[1].strip('"')
    return "Linux"


def _print(found: list[checks.Check], paths: list[str]) -> None:
    facts = _platform()
    colour = colour_wanted(sys.stdout)
    click.echo(
        f"xensock {__version__}, Python {facts['python']}, Linux {facts['kernel']} "
        f"{facts['machine']}, {facts['system']}\n"
    )
    width = max(len(check.name) for check in found)
    for check in found:
        mark = MARKS[check.state]
        if colour:
            mark = click.style(mark, fg=COLOURS[check.state], bold=True)
        click.echo(f"{mark} {check.name:<{width}}  {check.detail}", color=colour)
        if check.remedy:
            click.echo(f"  {'':<{width}}  → {check.remedy}")
    if paths:
        click.echo(f"\ndata paths: {', '.join(paths)}")
    else:
        click.echo("\ndata paths: none; `xensock run` cannot work here until each ✗ is solved")
