"""Sockets of the host that tell what IP says beside their datagrams (wire.packet_info)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from xensock.wire.packet_info import telling

if TYPE_CHECKING:
    import socket


def ask_for(sock: socket.socket) -> None:
    """Have a socket tell all of it. What its kernel does not know is not missed by the others."""
    for level, name in telling(sock.family):
        with contextlib.suppress(OSError):
            sock.setsockopt(level, name, 1)
