"""Where this user's backends can be reached, so that guests can be kept from it.

A guest that attached to a backend by itself would have that backend's rules instead of its own. Every daemon leaves a
link to its sockets in the user's runtime directory; whoever starts a guest covers what they lead to. A link that a
killed daemon left behind leads nowhere, or to the next daemon at the same path.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xensock.supervisor.ports import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PREFIX = "backend-"


@contextmanager
def known(paths: Iterable[str]) -> Iterator[None]:
    """These sockets are a backend's, as long as the context lasts. Raises OSError."""
    links = []
    _tidy()
    try:
        for path in paths:
            link = runtime_directory() / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            link.symlink_to(os.path.abspath(path))
            links.append(link)
        yield
    finally:
        for link in links:
            with contextlib.suppress(FileNotFoundError):
                link.unlink()


def _tidy() -> None:
    """Drop the links that killed daemons left behind: those that lead nowhere."""
    for link in runtime_directory().glob(f"{_PREFIX}*"):
        if not link.exists():
            with contextlib.suppress(FileNotFoundError):
                link.unlink()


def sockets() -> list[str]:
    """The sockets of all backends of this user that are known. Raises OSError."""
    try:
        directory = runtime_directory()
    except PermissionError:
        return []  # somebody else took its name, so that no backend of ours could be known there
    found = []
    for link in directory.glob(f"{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):  # that backend has just ended
            found.append(str(link.readlink()))
    return found
