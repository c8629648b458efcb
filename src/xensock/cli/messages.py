"""What a backend says about itself: how much, in which form, and where to.

Levels are those of syslog(3): by default notices of guests that come and go, with -q warnings and worse, with -v all.
Whatever guests call themselves is written with every character escaped that is not printable.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, Any, TypeVar

import click

from xensock.cli.auditing import Size
from xensock.cli.failures import not_written
from xensock.observe.trace import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = TypeVar("Command", bound=Callable[..., Any])

SCHEMA = 1
FORMATS = ("text", "json", "journald")
# sd-daemon(3): the level in front of each line of a service.
PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


def options(command: Command) -> Command:
    """-q, -v, --log-format, --log-file, --log-size; `Messages` takes their values."""
    for option in (
        click.option(
            "--log-size", type=Size(), default="16M", show_default=True,
            help="FILE and the one before it, FILE.1, have at most this size each.",
        ),
        click.option("--log-file", metavar="FILE", help="Write messages to FILE instead."),
        click.option(
            "--log-format", type=click.Choice(FORMATS),
            help="Form of messages; journald where stderr is the journal, else text.",
        ),
        click.option("-v", "--verbose", is_flag=True, help="Say more: each thing that ends early."),
        click.option("-q", "--quiet", is_flag=True, help="Say only what goes wrong."),
    ):  # fmt: skip
        command = option(command)
    return command


@dataclass(frozen=True, slots=True)
class Messages:
    """The options' values. `size` in bytes."""

    quiet: bool
    verbose: bool
    form: str | None
    path: str | None
    size: int

    def begin(self) -> None:
        """From now on all messages go there. Raises UserError where the file cannot be written."""
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        if self.path is not None:
            try:
                handler = RotatingFileHandler(
                    self.path, maxBytes=self.size, backupCount=1, encoding="utf-8"
                )
            except OSError as error:
                raise not_written("messages", self.path, error) from error
        form = self.form or (
            "journald" if self.path is None and _journal(sys.stderr.fileno()) else "text"
        )
        handler.setFormatter(Lines(form))
        level = logging.WARNING if self.quiet else logging.DEBUG if self.verbose else logging.INFO
        logging.basicConfig(handlers=[handler], level=level, force=True)
        logging.getLogger("asyncio").setLevel(logging.WARNING)


class Lines(logging.Formatter):
    """A message as one line: for people, as a JSON object, or for the journal."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Overrides logging.Formatter's; a traceback, which only --debug is for, becomes part of the line."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        if self._form == "json":
            told = {
                "schema": SCHEMA,
                "time": round(record.created, 6),
                "level": record.levelname.lower(),
                "message": text,
            }
            return json.dumps(told)
        lines = "\n".join(map(printable, text.split("\n")))
        if self._form == "journald":
            return f"<{PRIORITIES.get(record.levelname, 6)}>{lines}"
        return f"xensock backend: {lines}"


def _journal(fd: int) -> bool:
    """Whether that is the journal's socket, which the service manager names in JOURNAL_STREAM (systemd.exec(5))."""
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
