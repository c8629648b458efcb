"""What a killed backend left behind: socket files of nobody, and words of where it was.

A backend that ends in order leaves nothing, and the next one at the same place replaces what it finds. This is for
those that are not started again: a service manager runs it after each end (systemd.service(5), ExecStopPost).
"""

from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

from xensock.backend import places
from xensock.supervisor.diag import NETLINK_SOCK_DIAG
from xensock.supervisor.unix_diag import UnixDiag
from xensock.supervisor.unix_paths import Found

if TYPE_CHECKING:
    from collections.abc import Iterable


def clean(paths: Iterable[str]) -> list[str]:
    """Remove these sockets where nobody has them, and what killed backends of this user left in its runtime directory;
    what was removed. Nobody is connected to: where the service manager listens, that would start the backend.

    Raises OSError.
    """
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    diag = UnixDiag(link)
    try:
        removed = [path for path in paths if _is_left(path, diag)]
        for path in removed:
            os.unlink(path)
    finally:
        diag.close()
    return [*removed, *places.tidy()]


def _is_left(path: str, diag: UnixDiag) -> bool:
    """Whether there is a socket's file to which no socket of this network is bound."""
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode) and not diag.has(
            *Found(fd, path).identity(os.getpid())
        )
    finally:
        os.close(fd)
