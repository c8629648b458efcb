"""Where this user's backends can be reached, so that guests can be kept from it.

A guest that attached to a backend by itself would have that backend's rules instead of its own. Every daemon leaves a
link to its sockets in the user's runtime directory; whoever starts a guest covers what they lead to. A link that a
killed daemon left behind leads nowhere, or to the next daemon at the same path.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xensock.supervisor.ports import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_PREFIX = "backend-"
_CONTROL = "control-"  # links to the control sockets of daemons
_RUN = "run-"  # control sockets of runs, by the pid of the backend


def directory() -> str | None:
    """The user's runtime directory, made where it is missing, for guests to be kept out; None where there is none."""
    try:
        return str(runtime_directory())
    except OSError:
        return None


def run_socket() -> str:
    """The path of this run's control socket; those of killed ones are removed. Raises OSError."""
    _tidy_runs()
    return str(runtime_directory() / f"{_RUN}{os.getpid()}")


def _tidy_runs() -> list[str]:
    removed = []
    for path in runtime_directory().glob(f"{_RUN}*"):
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.setblocking(False)
            if probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                path.unlink()
                removed.append(str(path))
    return removed


def controls() -> list[str]:
    """The control sockets of all backends of this user, runs and daemons, in the order of their beginning."""
    try:
        where = runtime_directory()
    except OSError:
        return []
    found = [*where.glob(f"{_RUN}*"), *where.glob(f"{_CONTROL}*")]
    ages = {}
    for path in found:
        with contextlib.suppress(FileNotFoundError):
            ages[path] = path.lstat().st_mtime
    return [os.path.realpath(path) for path in sorted(ages, key=lambda path: ages[path])]


@contextmanager
def known(paths: Iterable[str], control: str | None = None) -> Iterator[None]:
    """These sockets are a backend's, as long as the context lasts; `control` is its control socket. Raises OSError."""
    links = []
    paths = [os.path.abspath(path) for path in paths]
    _tidy_links({*paths, *([os.path.abspath(control)] if control is not None else [])})
    try:
        for path in paths:
            link = runtime_directory() / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
            link.symlink_to(path)
            links.append(link)
        if control is not None:
            link = runtime_directory() / f"{_CONTROL}{os.getpid()}-{secrets.token_hex(4)}"
            link.symlink_to(os.path.abspath(control))
            links.append(link)
        yield
    finally:
        for link in links:
            with contextlib.suppress(FileNotFoundError):
                link.unlink()


def tidy() -> list[str]:
    """Remove what killed backends left in the user's runtime directory; what that was. Raises OSError."""
    return [*_tidy_links(), *_tidy_runs()]


def _tidy_links(own: Iterable[str] = ()) -> list[str]:
    """Drop the links that killed daemons left behind: those that lead nowhere, or to what is another daemon's now."""
    where = runtime_directory()
    removed = []
    for link in (*where.glob(f"{_PREFIX}*"), *where.glob(f"{_CONTROL}*")):
        with contextlib.suppress(FileNotFoundError):
            if not link.exists() or str(link.readlink()) in own:
                link.unlink()
                removed.append(str(link))
    return removed


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
