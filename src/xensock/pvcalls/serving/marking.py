"""Which listener a connection came from: the kernel has that nowhere, but what is set on a listener its connections
inherit, from their first moment on.

The mark is SO_RCVTIMEO (socket(7)), which says nothing of sockets that do not block, as all that a backend holds for
its guests; they themselves can neither set nor see it. It is the listener's cookie, in seconds, and nobody else's.
"""

from __future__ import annotations

import socket
import struct

from xensock.pvcalls.serving.counting import cookie

_TIMEVAL = struct.Struct("@ll")


def mark(listener: socket.socket) -> None:
    """Before listen(2). Raises OSError."""
    value = _TIMEVAL.pack(cookie(listener), 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)


def origin(sock: socket.socket) -> int:
    """The cookie of the listener from which a connection came; 0 for others. Raises OSError."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.size)
    return int(_TIMEVAL.unpack(raw)[0])
