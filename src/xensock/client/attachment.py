"""To which backend the own sockets of this process belong: `attach(URL)`, or the environment's XENSOCK."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xensock.client.link import Link

VARIABLE = "XENSOCK"

_lock = threading.Lock()
_current: Link | None = None


class NotAttached(OSError):
    """No backend is known: call `xensock.attach(URL)`, or set XENSOCK."""


def attach(url: str, *, name: str = "") -> Link:
    """Make the backend at `url` (`local:PATH`) the one of this process's sockets; an earlier one is closed.

    Raises ValueError for a URL that cannot be understood, OSError where nobody answers there.
    """
    global _current
    link = open_link(url, name or f"python[{os.getpid()}]")
    with _lock:
        before, _current = _current, link
    if before is not None:
        before.close()
    return link


def open_link(url: str, name: str, **how: Any) -> Link:
    """Sockets at the backend `url`, for a guest of that name; `how` as for Link. Raises ValueError, OSError."""
    from xensock.client.link import Link
    from xensock.pvcalls.frontend import Frontend
    from xensock.transport.url import connect

    return Link(Frontend(connect(url, name=name)), **how)


def detach() -> None:
    """Close every own socket of this process and leave the backend. Without one this does nothing."""
    global _current
    with _lock:
        before, _current = _current, None
    if before is not None:
        before.close()


def known() -> bool:
    """Whether there is a backend for this process, or the environment names one."""
    return _current is not None or bool(os.environ.get(VARIABLE))


def default() -> Link:
    """The backend of this process; attaches to that of the environment first. Raises NotAttached, OSError."""
    if _current is not None:
        return _current
    url = os.environ.get(VARIABLE)
    if not url:
        raise NotAttached(
            f"no backend is known: call xensock.attach('local:PATH'), or set {VARIABLE}"
        )
    return attach(url)
