"""What keeps a guest from starting, as a person sees it. Needs nothing beyond Python's standard library."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, BinaryIO, TextIO

from xensock.cli.errors import CANNOT_INVOKE, NOT_FOUND, UserError
from xensock.streams import warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.stack.netns import RightsError
    from xensock.stack.upstream import UnreachableError
    from xensock.supervisor.launch import ExecError, LaunchError


def explained(error: Exception) -> Exception:
    """What a failure to start means to the reader, with the remedy."""
    from xensock.stack.netns import RightsError
    from xensock.stack.upstream import UnreachableError
    from xensock.supervisor.launch import ExecError, LaunchError

    if isinstance(error, RightsError):
        return not_entered(error)
    if isinstance(error, UnreachableError):
        return _not_reached(error)
    if isinstance(error, ExecError):
        return _not_executed(error)
    if isinstance(error, LaunchError):
        return _not_launched(error)
    return error


def opened(path: str) -> TextIO:
    """The file for a trace, to append to. Raises UserError."""
    try:
        return open(path, "a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise not_written("the trace", path, error) from error


def lost(path: str | None) -> Callable[[OSError], None]:
    """What to say when a trace can be written no more; where it went to stderr (None) nobody is left to tell."""

    def tell(error: OSError) -> None:
        if path is not None:
            warn(f"the trace in {path} ends here: {error.strerror}; the program goes on")

    return tell


def opened_for_packets(path: str) -> BinaryIO:
    """The file for a capture, emptied. Raises UserError."""
    try:
        return open(path, "wb", buffering=0)
    except OSError as error:
        raise not_written("the capture", path, error) from error


def not_written(what: str, path: str, error: OSError) -> UserError:
    """A file that something was to be written to."""
    return UserError(
        f"cannot write {what} to {path}",
        error.strerror or str(error),
        "name a file that you may write",
    )


def _not_reached(error: UnreachableError) -> UserError:
    start = f"start one: xensock backend --listen {error.url}"
    hints = {
        errno.ENOENT: start,
        errno.ECONNREFUSED: f"it is not running; {start}",
        errno.ENOTDIR: "check the path",
        errno.EPROTOTYPE: "check the path: the socket there is another program's",
        errno.EACCES: f"have it admit you: xensock backend --user {os.geteuid()} …, and see to the file's permissions",
        errno.ETIMEDOUT: "see whether it hangs, and start it again",
    }
    why = error.strerror or str(error)
    refused = "refused by the backend" in why
    hint = "see what it says, and its --user" if refused else hints.get(error.errno or 0, start)
    return UserError(f"cannot reach the backend at {error.url}", why, hint)


def not_entered(error: RightsError) -> UserError:
    """What to do where a namespace is closed to this process."""
    return UserError(
        f"cannot enter the network namespace {error.filename}",
        f"{error.strerror}: it takes CAP_SYS_ADMIN (setns(2))",
        "run it as root; or start a backend in there, `xensock backend --listen local:PATH`, "
        'and have the policy name it: backend = "local:PATH"',
    )


def _not_executed(error: ExecError) -> UserError:
    if error.errno == errno.ENOENT:
        return UserError(
            f"{error.program}: not found",
            "no such program in PATH",
            "check the spelling, or give its path",
            NOT_FOUND,
        )
    return UserError(
        f"{error.program}: cannot be invoked",
        os.strerror(error.errno),
        "check that it is an executable file for this machine",
        CANNOT_INVOKE,
    )


def _not_launched(error: LaunchError) -> UserError:
    from xensock.doctor.checks import explain_failure

    what, cause, hint = explain_failure(error.stage, error.errno)[:3]
    return UserError(what, cause, hint)
