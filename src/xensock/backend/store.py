"""Descriptors that outlive this process: the service manager's store (sd_notify(3), FDSTORE), or our own holder's.

What is stored has a name, and is handed to the next process of the service like sockets that it listens at
(sd_listen_fds(3)). A sender's death does not recall what it has sent, so nothing is waited for.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from xensock.backend.systemd import FIRST, manager


class Store:
    """The store of this process. Without one nothing is kept, and nobody is the worse for it."""

    def __init__(self) -> None:
        self._sock = manager()

    @property
    def there(self) -> bool:
        """Whether there may be somebody who keeps anything."""
        return self._sock is not None

    def keep(self, name: str, fd: int) -> bool:
        """Have a copy of a descriptor kept; whether there is anybody who could. `name`: at most 255 characters, without
        colons."""
        return self._send(f"FDSTORE=1\nFDPOLL=0\nFDNAME={name}", fd)

    def drop(self, name: str) -> None:
        """It need not be kept any more."""
        self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send(self, text: str, *fds: int) -> bool:
        if self._sock is not None:
            with suppress(OSError):  # it is gone: what was kept is, too
                socket.send_fds(self._sock, [text.encode()], fds, socket.MSG_NOSIGNAL)
                return True
        return False


def inherited() -> dict[str, int]:
    """What was kept of a predecessor's, and sockets to listen at, by name. They are then not inheritable."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = os.environ.get("LISTEN_FDS", "")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found = {}
    for at in range(int(count) if count.isdigit() else 0):
        with suppress(OSError):
            os.set_inheritable(FIRST + at, False)
            found[names[at] if at < len(names) and names[at] else str(at)] = FIRST + at
    return found
