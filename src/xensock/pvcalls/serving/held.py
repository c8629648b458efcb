"""The sockets that a backend holds for a guest, one `Held` for each of the guest's ids."""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any

from xensock.calls.address import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.call import Decision
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.datagrams import Datagrams
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.rings import MappedRing
    from xensock.pvcalls.serving.sharing import Shared


class Phase(Enum):
    """Where a socket is in its life."""

    FRESH = auto()  # perhaps bound
    CONNECTING = auto()
    CONNECTED = auto()  # also after the connection's end, until it is released
    LISTENING = auto()
    ACCEPTING = auto()  # promised to the next connection of a listener
    DATAGRAMS = auto()


@dataclass(frozen=True, slots=True)
class Joined:
    """A connection to another socket of this backend's guests, in memory, and what its ends are called."""

    token: int
    own: Endpoint
    peer: Endpoint
    shared: Shared | None = None

    def other(self, family: int) -> Joined:
        """The other end, on a socket of that family."""
        own, peer = in_family(self.peer, family), in_family(self.own, family)
        return Joined(self.token, own, peer, self.shared)


def in_family(end: Endpoint, family: int) -> Endpoint:
    """An address as a socket of a family names it: IPv4 on an IPv6 socket as ::ffff:a.b.c.d."""
    if family == end.family:
        return end
    if family == socket.AF_INET:
        return end.unmapped()
    return Endpoint(IPv6Address(f"::ffff:{end.host}"), end.port)


@dataclass(slots=True, eq=False)
class Held:
    """A socket of the host that a guest knows as `id`.

    sock      non-blocking; None while ACCEPTING
    ring      mapped from CONNECT, ACCEPT or ATTACH on
    token     the mover's name of the connection, 0 where there is none; side: which of its sides the guest is
    shared    the pages that carry the connection instead of the mover; share: the guest's number of them
    cancel    while CONNECTING or ACCEPTING: gives the attempt up with that errno
    accepts   of a listener: sockets whose ACCEPT is parked, oldest first
    polls     of a listener: parked POLL calls
    queue     of a listener: connections from other sockets of this backend that wait to be accepted,
              beside the kernel's queue; at most `backlog` and one. `arrived` tells of a new one
    taken     of a listener: connections of the host's that were admitted and wait to be accepted
    joined    the names of a connection that is not the kernel's
    parent    of a joined socket that was accepted: its listener, whose options it inherits
    linger    SO_LINGER in seconds, None while it is off; the kernel is not told: its close would wait
    error     errno of an asynchronous connect that failed, until SO_ERROR is read
    decided   what was decided last about it, and whether the guest meets itself there
    close     undoes what a kind of socket needs beside the host's socket
    hops      how many backends pass its calls on before they come here
    start     where the mover began, for a successor: bytes that the kernel had taken and given until then, and the
              ring's out_cons and in_prod; None: nobody could go on with the connection
    stop      the index at which SHUTDOWN ended `out`; -1: it did not
    request   a CONNECT that was answered and goes on, or was not recorded yet
    made      the CONNECT or ACCEPT that connected it
    client    of an accepted one: who came, as struct sockaddr
    left      of a listener: connections that another backend had taken from the kernel's queue
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
    shared: Shared | None = None
    share: int = 0
    cancel: Callable[[int], None] | None = None
    call: Call | None = None
    accepts: deque[Held] = field(default_factory=deque)
    polls: list[Call] = field(default_factory=list)
    queue: deque[Joined] = field(default_factory=deque)
    taken: deque[tuple[socket.socket, tuple[str, int]]] = field(default_factory=deque)
    backlog: int = 0
    arrived: Callable[[], None] = lambda: None
    joined: Joined | None = None
    parent: Held | None = None
    watched: bool = False
    datagrams: Datagrams | None = None
    linger: int | None = None
    error: int = 0
    decided: tuple[Decision, bool] | None = None
    close: Callable[[], None] | None = None
    hops: int = 0
    start: tuple[int, int, int, int] | None = None
    stop: int = -1
    request: bytes = b""
    made: bytes = b""
    client: bytes = b""
    left: deque[socket.socket] = field(default_factory=deque)

    def kept(self) -> dict[str, Any]:
        """What a successor of this backend has to know (pvcalls.keeping)."""
        phase, ring, decided = self.phase, self.ring, self.decided
        if phase == Phase.CONNECTING and not self.request:  # a request without its answer has it so
            phase = Phase.FRESH if self.datagrams is None else Phase.DATAGRAMS
        if phase not in (Phase.CONNECTED, Phase.DATAGRAMS):
            ring = None
        peer = self.datagrams.peer() if self.datagrams is not None else None
        return {
            "fd": self.sock.fileno() if self.sock is not None else -1,
            "family": int(self.family),
            "kind": int(self.kind),
            "protocol": int(self.protocol),
            "hops": self.hops,
            "phase": phase.name,
            "ring": (ring.ref, ring.port) if ring is not None else None,
            "start": self.start,
            "stop": self.stop,
            "linger": self.linger,
            "backlog": self.backlog,
            "error": self.error,
            "accepted": decided is None,
            "request": self.request,
            "made": self.made,
            "client": self.client,
            "peer": peer,
        }

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
