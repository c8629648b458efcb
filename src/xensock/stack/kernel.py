"""The stack that is this host's kernel."""

from __future__ import annotations

import socket


class Kernel:
    """Sockets of this process's network namespace."""

    local = True
    name = "host"

    def make(self, family: int, type: int, protocol: int) -> socket.socket:
        """A socket of this process's network namespace. Raises OSError."""
        return socket.socket(family, type, protocol)

    def create_server(self, host: str, port: int, family: int, dual: bool) -> socket.socket:
        """A listener of the host; `dual`: for both families. Raises OSError."""
        return socket.create_server((host, port), family=family, dualstack_ipv6=dual, backlog=128)

    def live(self) -> int:
        """Connections that are more than a socket: none."""
        return 0

    def close(self, patience: float = 0) -> None:
        """Nothing to let go of."""
