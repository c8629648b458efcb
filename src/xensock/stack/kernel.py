"""The stack that is this host's kernel."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.stack.stacks import Look

if TYPE_CHECKING:
    from xensock.calls.call import Protocol


class Kernel:
    """Sockets of this process's network namespace."""

    local = here = True
    passer = None

    def __init__(self, name: str = "host") -> None:
        self.name = name

    def make(self, family: int, type: int, protocol: int) -> socket.socket:
        """A socket of this process's network namespace. Raises OSError."""
        return socket.socket(family, type, protocol)

    def create_server(self, host: str, port: int, family: int, dual: bool) -> socket.socket:
        """A listener of the host; `dual`: for both families. Raises OSError."""
        return socket.create_server((host, port), family=family, dualstack_ipv6=dual, backlog=128)

    def look(self, protocol: Protocol, end: Endpoint, broadcast: bool = False) -> Look:
        """What this host's routes say of datagrams to there."""
        with self.make(end.family, socket.SOCK_DGRAM, 0) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, broadcast)
            try:
                probe.connect(end.as_python())
            except OSError as error:
                return Look(error.errno or errno.EIO)
            return Look(0, Endpoint.from_python(probe.getsockname()))

    def live(self) -> int:
        """Connections that are more than a socket: none."""
        return 0

    def close(self, patience: float = 0) -> None:
        """Nothing to let go of."""
