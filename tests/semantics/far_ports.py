"""Ports for the far end's services whose numbers a probe can listen on, too, on its own host.

So none is of those that the kernel gives to connections there (ip_local_port_range of ip(7): from 32768 on), nor of
those that tests choose (`Namespace.free_port`).
"""

from __future__ import annotations

import errno
import socket

PORTS = range(30000, 32768)


def bound(kind: int) -> socket.socket:
    """A socket at every address of both families, at the first port that is free. Raises OSError."""
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    for port in PORTS:
        try:
            sock.bind(("::", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == PORTS[-1]:
                raise
        else:
            break
    return sock
