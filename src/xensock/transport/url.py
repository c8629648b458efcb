"""Where a backend is, as a person writes it: `local:PATH` on this host, `xen:` or `xen:DEVICE` in another domain."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from xensock.transport.base import FrontSession, Limits, Listener

# sun_path of struct sockaddr_un (unix(7)) has 108 bytes with the terminating zero.
LONGEST_PATH = 107


class UrlError(ValueError):
    """A URL that names no backend; `hint` says how one looks."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Url:
    """A transport's scheme and what it needs to find the other side."""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}:{self.path}"


def parse(text: str) -> Url:
    """The backend that `text` names. Raises UrlError."""
    scheme, colon, path = text.partition(":")
    if colon and scheme == "xen":
        if path and not (path.isascii() and path.isdigit() and len(path) < 10):
            raise UrlError(
                f"{path!r} is no number of a device", "use xen: or xen:N for device/pvcalls/N"
            )
        return Url(scheme, path)
    if not colon or scheme != "local":
        what = f"no transport is called {scheme!r}" if colon else f"{text!r} names no transport"
        raise UrlError(
            what, "use local:PATH with the path of the backend's socket, or xen: in a Xen domain"
        )
    if not path:
        raise UrlError("the path is empty", "use local:PATH with the path of the backend's socket")
    if "\0" in path:
        raise UrlError("the path contains a zero byte", "use local:PATH with a path of text only")
    size = len(os.fsencode(path))
    if size > LONGEST_PATH:
        raise UrlError(
            f"the path has {size} bytes, a unix socket's has at most {LONGEST_PATH}",
            "use a shorter path, e.g. below /run",
        )
    return Url(scheme, path)


def connect(text: str, *, name: str = "", timeout: float | None = 10.0) -> FrontSession:
    """Reach the backend at this URL; `name` introduces this guest, `timeout` is in seconds.

    Raises UrlError, OSError (as connect(2)), TransportError (refused), TimeoutError.
    """
    where = parse(text)
    if where.scheme == "xen":
        from xensock.transport import xen_front

        return xen_front.connect(int(where.path or 0), timeout=timeout)
    from xensock.transport import local_front

    return local_front.connect(where.path, name=name, timeout=timeout)


def listen(
    text: str, *, uids: Collection[int] = (), mode: int = 0o600, limits: Limits | None = None
) -> Listener:
    """Wait for frontends at this URL. `uids`: users admitted beside our own and root; `mode`:
    permissions of the socket's file. Raises UrlError, OSError (EADDRINUSE: a backend is there)."""
    where = parse(text)
    if where.scheme == "xen":
        from xensock.transport import xen_back

        if where.path:
            raise UrlError("a backend serves every device that names its domain", "use xen:")
        return xen_back.listen(limits)
    from xensock.transport import local_back

    return local_back.listen(where.path, uids=uids, mode=mode, limits=limits)
