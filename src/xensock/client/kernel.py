"""The sockets of the guest's own kernel: the standard library's, as they are before `install` changes its names."""

from __future__ import annotations

import socket as standard
from _socket import socketpair as _pair

socket = standard.socket
getaddrinfo = standard.getaddrinfo


def socketpair(kind: int) -> tuple[standard.socket, standard.socket]:
    """Two ends of AF_UNIX that are connected. Raises OSError."""
    near, far = _pair(standard.AF_UNIX, kind)
    return (
        socket(standard.AF_UNIX, kind, 0, near.detach()),
        socket(standard.AF_UNIX, kind, 0, far.detach()),
    )
