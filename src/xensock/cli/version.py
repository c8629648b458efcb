"""`xensock version`."""

from __future__ import annotations

import json
import platform

import click

from xensock import __version__


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON with a schema number.")
def version(as_json: bool) -> None:
    """Show the version of XenSock, Python and the kernel."""
    known = {
        "xensock": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "machine": platform.machine(),
    }
    if as_json:
        click.echo(json.dumps({"schema": 1, **known}))
    else:
        click.echo(
            f"xensock {known['xensock']} (Python {known['python']}, "
            f"Linux {known['kernel']} {known['machine']})"
        )
