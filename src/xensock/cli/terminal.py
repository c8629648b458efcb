"""Whether to colour, by the terminal, NO_COLOR (no-color.org) and `--color`."""

from __future__ import annotations

import os
from typing import TextIO

import click

CHOICES = ("auto", "always", "never")


def colour_wanted(stream: TextIO, choice: str | None = None) -> bool:
    """Whether to write ANSI colours to `stream`.

    `choice` is "auto", "always" or "never"; without one, what `xensock --color` was given.
    """
    if choice is None:
        context = click.get_current_context(silent=True)
        choice = context.find_root().params.get("color") if context else None
    if choice == "always":
        return True
    if choice == "never" or os.environ.get("NO_COLOR"):
        return False
    return stream.isatty() and os.environ.get("TERM") != "dumb"
