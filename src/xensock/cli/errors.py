"""Errors as a person sees them: what failed, why, and what to do about it.

Code that cannot go on raises `UserError`; the command's entry point prints it and chooses the exit
status. Nothing else prints errors, and no traceback is shown without `--debug`.
"""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress
from typing import TextIO

# Exit statuses of the podman-run/chroot(1) convention; 126 and 127 are for the guest's program.
FAILURE = 1
USAGE = 2
OURS = 125
CANNOT_INVOKE = 126
NOT_FOUND = 127
INTERRUPTED = 130


class UserError(Exception):
    """A failure that its reader can act upon.

    `what` failed, in a few words; `cause`: why, as far as known; `hint`: the next thing to do, with
    the exact command where there is one; `code`: the exit status of `xensock run` (other verbs
    exit with 1, or 2 when `code` is 2).
    """

    def __init__(self, what: str, cause: str = "", hint: str = "", code: int = OURS) -> None:
        super().__init__(what)
        self.what = what
        self.cause = cause
        self.hint = hint
        self.code = code


def as_user_error(error: BaseException) -> UserError:
    """The error to show for any exception that reached the top of the command."""
    if isinstance(error, UserError):
        return error
    # Rules, addresses and the like have their own exceptions, which know a hint but no exit status.
    hint = getattr(error, "hint", "")
    if isinstance(hint, str) and hint:
        return UserError(str(error), getattr(error, "cause", ""), hint)
    if isinstance(error, OSError) and error.filename is not None:
        return UserError(
            f"cannot use {_printable(error.filename)}",
            cause=error.strerror or str(error),
            hint="check the path and its permissions (--debug shows where it was used)",
        )
    return UserError(
        "xensock failed unexpectedly",
        cause=f"{type(error).__name__}: {error}",
        hint="run it again with --debug and report the traceback",
    )


def exit_status(error: UserError, verb: str) -> int:
    """The exit status for an error of `xensock VERB`."""
    if verb == "run":
        return OURS if error.code in (FAILURE, USAGE) else error.code
    return USAGE if error.code == USAGE else FAILURE


def show(error: BaseException, *, debug: bool = False, stream: TextIO | None = None) -> UserError:
    """Print an error to stderr, with its traceback if `debug`; returns what was shown."""
    out = sys.stderr if stream is None else stream
    shown = as_user_error(error)
    with suppress(OSError):  # the reader of stderr left; the status tells the same
        if debug:
            # An error that explains another was never raised itself: show the one being handled.
            raised = error if error.__traceback__ is not None else sys.exception() or error
            traceback.print_exception(raised, file=out)
        for label, text in (("error", shown.what), ("cause", shown.cause), ("hint", shown.hint)):
            if text:
                print(f"{label}: {_printable(text)}", file=out)
    return shown


def _printable(text: object) -> str:
    """The text without control characters: an error may quote what a guest or a file says."""
    words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in words
    )
