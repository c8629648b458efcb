"""The standard streams of a process: lines for stderr, streams that the caller has closed, streams left to others."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def say(text: str) -> None:
    """Write a line to stderr. Where its reader has left or its disk is full nobody is told: whatever goes on here must
    not end for it."""
    with suppress(OSError):
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def warn(text: str) -> None:
    """`say` under the command's name."""
    say(f"xensock: {text.rstrip()}")


def let_go(*fds: int) -> None:
    """Have /dev/null in the place of these, so that their other ends see the end of whoever else holds them."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for fd in fds:
        os.dup2(null, fd)
    os.close(null)


def complete() -> None:
    """Open /dev/null in the place of each standard stream that is closed, so that no file of ours gets its number.

    It closes again when another program is executed: a guest's program finds what was closed closed, as natively.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            if null != fd:  # a lower one was free, which no standard stream is any more
                os.dup2(null, fd, inheritable=False)
                os.close(null)
    # Python has None for those.
    sys.stdin = sys.stdin or os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
