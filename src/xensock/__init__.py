"""XenSock: the socket calls of a guest without a network card, carried out by a backend.

`run` runs a program in a guest. `socket` and its companions are the sockets of a backend's network for Python programs.
What is named here is loaded when it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xensock.api import Done, RunError, run
    from xensock.calls.family import AF_XENSOCK
    from xensock.client.attachment import NotAttached, attach
    from xensock.client.install import install, uninstall
    from xensock.client.making import create_connection, create_server
    from xensock.client.names import getaddrinfo
    from xensock.client.sockets import socket

__version__ = "0.1.0"
__all__ = [
    "AF_XENSOCK",
    "Done",
    "NotAttached",
    "RunError",
    "attach",
    "create_connection",
    "create_server",
    "getaddrinfo",
    "install",
    "run",
    "socket",
    "uninstall",
]
_HOMES = {
    "AF_XENSOCK": "calls.family",
    "NotAttached": "client.attachment",
    "attach": "client.attachment",
    "create_connection": "client.making",
    "create_server": "client.making",
    "getaddrinfo": "client.names",
    "install": "client.install",
    "socket": "client.sockets",
    "uninstall": "client.install",
}


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(import_module(f"xensock.{_HOMES.get(name, 'api')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
