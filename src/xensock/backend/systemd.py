"""What a service manager expects of a daemon: sd_notify(3) and sd_listen_fds(3), without libsystemd."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

FIRST = 3  # SD_LISTEN_FDS_START


def manager() -> socket.socket | None:
    """A socket to the service manager, or to our own holder (NOTIFY_SOCKET); None where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
    except OSError:
        sock.close()
        return None
    return sock


def notify(state: str, *fds: int) -> bool:
    """Tell the service manager, as "READY=1", with descriptors. False where there is none; a manager that is gone
    does not matter."""
    sock = manager()
    if sock is None:
        return False
    with sock, suppress(OSError):
        socket.send_fds(sock, [state.encode()], fds)
        return True
    return False


def socket_at(path: str, kind: int) -> socket.socket | None:
    """The socket that listens at a path, if the service manager handed one over. It is then the caller's."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = os.environ.get("LISTEN_FDS", "")
    for fd in range(FIRST, FIRST + (int(count) if count.isdigit() else 0)):
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            continue
        if (sock.family, sock.type) == (socket.AF_UNIX, kind) and sock.getsockname() == path:
            sock.set_inheritable(False)
            sock.setblocking(False)
            return sock
        sock.detach()
    return None
