"""XenSock: the socket calls of a guest without a network card, carried out by a backend.

`run` runs a program in a guest; its names come from `xensock.api`, which is loaded when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xensock.api import Done, RunError, run

__version__ = "0.1.0"
__all__ = ["Done", "RunError", "run"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from xensock import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
