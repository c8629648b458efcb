"""How much of its host one guest may take, and how that is counted.

Sockets of the host that a guest holds are not known here once they were given: they are counted where a guest has been
given as many as there may be, by a look at the descriptors of its processes. Sockets in messages that nobody has
received are not seen there; how many those may be, RLIMIT_NOFILE says (unix(7)).
"""

from __future__ import annotations

import errno
import os
import socket
import time
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from xensock import _core

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor

RECOUNT_S = 0.2  # a look at 50,000 descriptors takes 50 ms


class LimitError(ValueError):
    """A limit as somebody wrote it: what is wrong, and how to write it."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one guest.

    sockets      that it may hold where they are the host's (direct); further ones: ENFILE
    ports        of the host that it may have bound at once; further ones: EADDRINUSE
    connects     that may be waited for at once; further ones: EAGAIN
    connections  that may be relayed at once; further ones: EAGAIN
    calls        a second that the backend looks at; further ones wait
    """

    sockets: int = 65536
    ports: int = 4096
    connects: int = 4096
    connections: int = 16384
    calls: int = 100_000

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Limits:
        """From NAME=NUMBER. Raises LimitError."""
        known = [each.name for each in fields(cls)]
        found: dict[str, int] = {}
        for text in texts:
            name, _, number = text.partition("=")
            if name not in known:
                raise LimitError(f"limit {text}: no such limit", f"one of {', '.join(known)}")
            if not number.isascii() or not number.isdigit() or not 0 < int(number) < 1 << 31:
                raise LimitError(
                    f"limit {text}: {number or 'nothing'} is no number of {name}",
                    f"write a number from 1 to {(1 << 31) - 1}, e.g. {name}={getattr(cls(), name)}",
                )
            found[name] = int(number)
        return replace(cls(), **found)


@dataclass(slots=True)
class Taken:
    """What a guest holds of the host; used by its supervisors, one at a time."""

    full_until: float = 0.0
    ports: set[int] = field(default_factory=set)  # inodes of the sockets that have them
    told: set[str] = field(default_factory=set)


def make(sup: Supervisor, q: Question) -> None:
    """socket(AF_INET or AF_INET6, SOCK_STREAM, …) of a guest that was given as many as it may have."""
    domain, kind, protocol = (each & 0xFFFFFFFF for each in q.args[:3])
    now = time.monotonic()
    room = 0
    if now >= sup.taken.full_until:
        room = sup.parts.limits.sockets - len(sup.open_sockets())
    if room <= 0:
        sup.taken.full_until = max(sup.taken.full_until, now + RECOUNT_S)
        told(sup, "sockets")
        sup.answer(q, errno.ENFILE)
        return
    _core.super_room(sup.handle, room)
    try:
        made = socket.socket(domain, kind & 0xF, protocol)
    except OSError as error:
        sup.answer(q, error.errno or errno.EIO)
        return
    with made:
        os.set_blocking(made.fileno(), not kind & socket.SOCK_NONBLOCK)
        number = _core.super_addfd(sup.handle, q.id, made.fileno(), -1, kind & socket.SOCK_CLOEXEC)
    if number < 0 and number != -errno.ENOENT:
        sup.answer(q, -number)


def take_port(sup: Supervisor, sock: socket.socket) -> None:
    """A host's socket of the guest's is about to be bound. Raises OSError (EADDRINUSE) where there are enough."""
    held, most = sup.taken.ports, sup.parts.limits.ports
    if len(held) >= most:
        held &= sup.open_sockets()
        if len(held) >= most:
            told(sup, "ports")
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    held.add(os.fstat(sock.fileno()).st_ino)


def check(sup: Supervisor, name: str, count: int, error: int) -> None:
    """Raises OSError with this number where so many are too many."""
    if count >= getattr(sup.parts.limits, name):
        told(sup, name)
        raise OSError(error, os.strerror(error))


def told(sup: Supervisor, name: str) -> None:
    """Say once that the guest has reached a limit."""
    if name not in sup.taken.told:
        sup.taken.told.add(name)
        number = getattr(sup.parts.limits, name)
        sup.parts.warn(
            f"{sup.parts.name} has reached its limit of {number} {name}; more by --limit {name}=N"
        )
