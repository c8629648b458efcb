"""Connections whose ends are looked at."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def joined(
    host: str = "127.0.0.1", family: int = socket.AF_INET
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client of this family at a server at a host: of the same one, or "127.0.0.1"."""
    at = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=at) as server, socket.socket(family) as client:
        client.connect(("::ffff:" * (at != family) + host, server.getsockname()[1]))
        far, _ = server.accept()
        with far:
            yield client, far
