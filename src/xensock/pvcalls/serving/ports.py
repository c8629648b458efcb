"""The host's ports that guests hold, so that no guest takes another one's.

The kernel refuses a port that is taken, except where both sockets allow it: with SO_REUSEPORT, and
datagram sockets with SO_REUSEADDR. All guests of a backend are one user for the kernel, which would let
them share; here such sharing ends at the guest's border.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, TypeVar

from xensock.calls.address import Endpoint
from xensock.pvcalls.serving.limits import refuse

if TYPE_CHECKING:
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held

K = TypeVar("K")


class Ports:
    """Which socket of which guest is bound where."""

    def __init__(self) -> None:
        self._by_port: dict[tuple[int, int], dict[Held, Endpoint]] = {}
        self._where: dict[Held, tuple[int, int]] = {}
        self._listeners: dict[int, dict[Held, Endpoint]] = {}

    def bind(self, held: Held, local: Endpoint) -> None:
        """Bind the host's socket. Raises OSError: EADDRINUSE, also for what another guest shares
        with itself, and what bind(2) says."""
        inner = local.unmapped()
        if inner.port and held not in self._where:
            for other, there in self._by_port.get((held.kind, inner.port), {}).items():
                if other.guest is not held.guest and _meet(there, inner):
                    raise refuse(errno.EADDRINUSE)
        held.host.bind(local.as_python())
        self.note(held)

    def note(self, held: Held) -> None:
        """Remember where a socket is bound now."""
        end = Endpoint.from_python(held.host.getsockname()).unmapped()
        key = (held.kind, end.port)
        if self._where.setdefault(held, key) == key:
            self._by_port.setdefault(key, {})[held] = end

    def listens(self, held: Held, local: Endpoint) -> None:
        """A stream socket takes connections now."""
        self.note(held)
        self._listeners.setdefault(local.port, {})[held] = local.unmapped()

    def forget(self, held: Held) -> None:
        """A socket is closed."""
        key = self._where.pop(held, None)
        if key is None:
            return
        _drop(self._by_port, key, held)
        _drop(self._listeners, key[1], held)

    def listener(self, end: Endpoint) -> Held | None:
        """The listener that a connection to this (unmapped) address of the host reaches, if it is a
        guest's. Several may share a port (SO_REUSEPORT); then each has its turn."""
        there = self._listeners.get(end.port, {})
        able = [h for h, at in there.items() if _meet(at, end) and _hears(h, at, end)]
        if not able:
            return None
        exact = [held for held in able if there[held].host == end.host]
        return min(exact or able, key=lambda held: len(held.queue))

    def is_own(self, guest: Guest, end: Endpoint, kind: int = socket.SOCK_STREAM) -> bool:
        """Whether this destination on the loopback is a listener of the guest itself, or for
        datagrams a bound socket."""
        if not (end.host.is_loopback or end.host.is_unspecified):
            return False
        at = loopback_of(end)
        if kind == socket.SOCK_STREAM:
            there = self._listeners.get(end.port, {})
        else:
            there = self._by_port.get((kind, end.port), {})
        return any(
            held.guest is guest and _meet(local, at) and _hears(held, local, at)
            for held, local in there.items()
        )


def loopback_of(end: Endpoint) -> Endpoint:
    """Where a connection to the unspecified address goes (ip(7))."""
    if not end.host.is_unspecified:
        return end
    text = "127.0.0.1" if end.host.version == 4 else "::1"
    return Endpoint.from_python((text, end.port))


def _meet(one: Endpoint, other: Endpoint) -> bool:
    """Whether two local addresses with the same port could take each other's connections."""
    return one.host == other.host or one.host.is_unspecified or other.host.is_unspecified


def _hears(held: Held, there: Endpoint, at: Endpoint) -> bool:
    """Whether a listener bound there takes connections of that address family."""
    if there.host.version == at.host.version:
        return True
    return (
        there.host.version == 6
        and there.host.is_unspecified
        and not held.host.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )


def _drop(table: dict[K, dict[Held, Endpoint]], key: K, held: Held) -> None:
    found = table.get(key)
    if found is not None:
        found.pop(held, None)
        if not found:
            del table[key]
