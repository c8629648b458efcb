"""`xensock install` and `xensock uninstall`: make engines and the service manager know XenSock, and forget it again."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import click

from xensock.cli.errors import USAGE, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xensock.backend.installing import Change, Places

WHAT = (
    click.option("--docker", is_flag=True, help="The runtime, in daemon.json of dockerd."),
    click.option("--podman", is_flag=True, help="The runtime, in a file of containers.conf.d."),
    click.option("--systemd", is_flag=True, help="Units of the backend: socket and service."),
    click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing."),
)
NEXT = {
    "docker": "systemctl reload docker; docker run --runtime xensock --network none IMAGE",
    "podman": "podman --runtime xensock run --network none IMAGE",
    "systemd": "systemctl {user}daemon-reload; systemctl {user}enable --now xensock.socket",
}
UNDONE = {
    "docker": "systemctl reload docker",
    "systemd": "systemctl {user}stop xensock.socket xensock.service; systemctl {user}daemon-reload",
}


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(WHAT):
        command = option(command)
    return command


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_options
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="OPTION",
    help="One of `xensock backend` for the service, as --option=--allow=web.example:443. Repeatable.",
)
def install(
    docker: bool, podman: bool, systemd: bool, dry_run: bool, options: tuple[str, ...]
) -> None:
    """Make Docker, Podman or systemd know XenSock: as root the system's, otherwise your own."""
    from xensock.backend import installing

    _some(docker, podman, systemd)
    places = installing.Places.here()
    changes: list[Change] = []
    try:
        changes += [installing.docker(places)] if docker else []
        changes += [installing.podman(places)] if podman else []
        changes += installing.units(places, options) if systemd else []
    except installing.InstallError as error:
        raise UserError("nothing was installed", str(error), error.hint) from error
    _carry_out(changes, dry_run)
    _say_next(NEXT, places, docker=docker, podman=podman, systemd=systemd)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@_options
def uninstall(docker: bool, podman: bool, systemd: bool, dry_run: bool) -> None:
    """Undo `xensock install`, all of it or what is named: what files held before is put back."""
    from xensock.backend import installing

    if not (docker or podman or systemd):
        docker = podman = systemd = True
    places = installing.Places.here()
    changes: list[Change] = []
    try:
        changes += [installing.without_docker(places)] if docker else []
    except installing.InstallError as error:
        raise UserError("nothing was changed", str(error), error.hint) from error
    changes += installing.removed(places.podman) if podman else []
    changes += installing.without_units(places) if systemd else []
    _carry_out(changes, dry_run)
    if any(change.needed for change in changes):
        _say_next(UNDONE, places, docker=docker, systemd=systemd)


def _say_next(words: Mapping[str, str], places: Places, **wanted: bool) -> None:
    for name in wanted:
        if wanted[name]:
            click.echo(f"next: {words[name].format(user='--user ' if places.user else '')}")


def _some(*chosen: bool) -> None:
    if not any(chosen):
        raise UserError(
            "nothing was named",
            "what is to know XenSock?",
            "add --docker, --podman or --systemd",
            USAGE,
        )


def _carry_out(changes: list[Change], dry_run: bool) -> None:
    from xensock.backend.installing import apply

    if dry_run:
        for change in changes:
            click.echo(_shown(change), nl=False)
        return
    try:
        made = apply(changes)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename}",
            error.strerror or str(error),
            "do it as a user who may, or see what would change: --dry-run",
        ) from error
    for path in made:
        click.echo(f"changed: {path}")
    if not made:
        click.echo("nothing had to be changed")


def _shown(change: Change) -> str:
    """A unified diff, as of diff(1)."""
    before, after = (
        (text or b"").decode(errors="replace") for text in (change.before, change.after)
    )
    lines = difflib.unified_diff(
        before.splitlines(keepends=True),
        after.splitlines(keepends=True),
        str(change.path) if change.before is not None else "/dev/null",
        str(change.path) if change.after is not None else "/dev/null",
    )
    return "".join(lines) or f"{change.path}: no change\n"
