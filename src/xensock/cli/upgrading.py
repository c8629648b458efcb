"""`xensock upgrade`: a backend's place is taken by the version that is installed now; its containers go on."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from xensock.cli.errors import FAILURE, UserError
from xensock.cli.looking import HELP, SCHEMA, control_option, json_option, known

if TYPE_CHECKING:
    from xensock.backend.asking import Backend

READY_S = 60.0
LOOK_S = 0.05


@click.command(context_settings=HELP)
@json_option
@control_option
def upgrade(control: str | None, as_json: bool) -> None:
    """Have the version of XenSock that is installed now take the place of a backend that runs with --hold.

    The new one is started beside the old, which ends when the new one is ready to take over; if that fails, the
    old one goes on.
    """
    from xensock.backend.asking import AnswerError

    found = known(control)
    if len(found) != 1:
        paths = ", ".join(each.path for each in found)
        raise UserError(
            "which backend is to be replaced?",
            f"several answer: {paths}" if found else "no backend answers",
            "say --control PATH, which `xensock backend --control PATH` was given",
            FAILURE,
        )
    (old,) = found
    try:
        before = old.ask("version")
        _replace(old)
        after = _next(old)
    except (AnswerError, OSError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        hint = "what the new one said is in the backend's log; the old one goes on"
        if isinstance(error, AnswerError) and error.code == "impossible":
            hint = "end it and start the new one, with --hold so that this works next time"
        raise UserError("the backend was not replaced", cause, hint, FAILURE) from error
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "before": before, "after": after}))
    else:
        click.echo(f"before: {_named(before)}\nafter: {_named(after)}")


def _named(version: dict[str, Any]) -> str:
    return f"xensock {version['xensock']}, process {version['pid']}"


def _replace(backend: Backend) -> None:
    """Raises AnswerError, OSError, where the backend goes on."""
    from xensock.backend.asking import AnswerError

    try:
        backend.ask("upgrade", patience=2 * READY_S)
    except AnswerError as error:
        if error.code != "not-admitted":  # no answer: it has ended, as it was to
            raise
    except ConnectionResetError:
        pass


def _next(old: Backend) -> dict[str, Any]:
    """What the next backend says it is, once it answers. Raises AnswerError, OSError."""
    from xensock.backend.asking import AnswerError

    deadline = time.monotonic() + READY_S
    while True:
        try:
            found = old.ask("version")
            if found["pid"] != old.pid:
                return {"xensock": found["xensock"], "pid": found["pid"]}
        except (AnswerError, OSError):
            if time.monotonic() > deadline:
                raise
        time.sleep(LOOK_S)
