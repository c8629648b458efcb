"""The sockets that a backend holds for a guest, one `Held` for each of the guest's ids."""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.datagrams import Datagrams
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.rings import MappedRing


class Phase(Enum):
    """Where a socket is in its life."""

    FRESH = auto()  # perhaps bound
    CONNECTING = auto()
    CONNECTED = auto()  # also after the connection's end, until it is released
    LISTENING = auto()
    ACCEPTING = auto()  # promised to the next connection of a listener
    DATAGRAMS = auto()


@dataclass(slots=True, eq=False)
class Held:
    """A socket of the host that a guest knows as `id`.

    sock      non-blocking; None while ACCEPTING
    ring      mapped from CONNECT, ACCEPT or ATTACH on
    token     the mover's name of the connection, 0 where there is none; side: which of its sides the guest is
    cancel    while CONNECTING or ACCEPTING: gives the attempt up with that errno
    accepts   of a listener: sockets whose ACCEPT is parked, oldest first
    polls     of a listener: parked POLL calls
    linger    SO_LINGER in seconds, None while it is off; the kernel is not told: its close would wait
    error     errno of an asynchronous connect that failed, until SO_ERROR is read
    close     undoes what a kind of socket needs beside the host's socket
    """

    guest: Guest
    id: int
    family: int
    kind: int
    protocol: int
    sock: socket.socket | None
    phase: Phase = Phase.FRESH
    ring: MappedRing | None = None
    token: int = 0
    side: int = 0
    cancel: Callable[[int], None] | None = None
    call: Call | None = None
    accepts: deque[Held] = field(default_factory=deque)
    polls: list[Call] = field(default_factory=list)
    watched: bool = False
    datagrams: Datagrams | None = None
    linger: int | None = None
    error: int = 0
    close: Callable[[], None] | None = None

    @property
    def host(self) -> socket.socket:
        """The host's socket, which is there in every phase but ACCEPTING."""
        assert self.sock is not None
        return self.sock

    @property
    def is_bound(self) -> bool:
        """Whether the socket has a port of its own."""
        if self.sock is None or self.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        return bool(self.sock.getsockname()[1])
