"""How much of the backend's host one guest may take."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

# Descriptors that a connected socket costs: the host's socket twice (for commands, for the mover),
# its event channel's eventfds twice.
FDS_PER_SOCKET = 6


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one guest, unless it says otherwise.

    sockets     that exist at once; further ones: ENFILE
    pages       of its own memory that the backend maps at once; further ones: ENOMEM
    turn        commands taken at once; others get their turn in between
    lingering   bytes (and connections) that may wait for slow receivers after their sockets were
                released; beyond, a release resets the connection
    guests      (all together) that are connected at once; further ones are turned away
    handshake   seconds that a frontend has to connect, and to let go once told to
    order       of the largest data ring of v1 frontends (max-page-order)
    large_order of the largest data ring where large-rings is agreed
    ring_order  of the largest command ring (max-ring-page-order)
    """

    sockets: int = 16384
    pages: int = 1 << 19
    turn: int = 32
    lingering: tuple[int, int] = (1 << 28, 4096)
    guests: int = 256
    handshake: float = 30.0
    order: int = 9
    large_order: int = 13
    ring_order: int = 4

    @classmethod
    def for_descriptors(cls, count: int) -> Limits:
        """Limits under which four greedy guests leave descriptors for others, where there may be
        `count` (RLIMIT_NOFILE)."""
        return cls(sockets=max(16, min(cls().sockets, count // (4 * FDS_PER_SOCKET))))


def refuse(number: int) -> OSError:
    """The error of that number, as the kernel words it."""
    return OSError(number, os.strerror(number))


def bad_id() -> OSError:
    """A command for a socket that the guest does not have."""
    return refuse(errno.EBADF)
