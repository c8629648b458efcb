"""`xensock.install()`: the standard library's sockets of this program become the backend's.

Names that the standard module resolves by itself (gethostbyname and its like) are replaced too. What imported
`socket.socket` by name before keeps the kernel's.
"""

from __future__ import annotations

import socket as standard
from typing import Any

from xensock.client import attachment, making, names

_kept: dict[str, Any] = {}


def install(url: str | None = None) -> None:
    """Route the sockets of this program through the backend at `url`, or at that of XENSOCK. Raises OSError,
    ValueError. Calling it again only changes the backend."""
    if url is not None:
        attachment.attach(url)
    else:
        attachment.default()
    if _kept:
        return
    for name, value in (*making.socket_functions(), *_BY_NAME):
        _kept[name] = getattr(standard, name)
        setattr(standard, name, value)


def uninstall() -> None:
    """Undo install(); sockets that were made stay what they are."""
    for name, value in _kept.items():
        setattr(standard, name, value)
    _kept.clear()


def gethostbyname(hostname: str) -> str:
    """The first IPv4 address. Raises socket.gaierror."""
    return str(names.getaddrinfo(hostname, None, standard.AF_INET, standard.SOCK_STREAM)[0][4][0])


def gethostbyname_ex(hostname: str) -> tuple[str, list[str], list[str]]:
    """(name, aliases, IPv4 addresses). Raises socket.gaierror."""
    found = names.getaddrinfo(hostname, None, standard.AF_INET, standard.SOCK_STREAM)
    return hostname, [], [str(each[4][0]) for each in found]


_BY_NAME = (("gethostbyname", gethostbyname), ("gethostbyname_ex", gethostbyname_ex))
