"""One trapped call that waits for an answer."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xensock.calls.address import AddressError, Endpoint

if TYPE_CHECKING:
    from xensock import _core

QUESTION, DONE = 0, 1
SHORTEST6, WHOLE6 = 24, 28  # RFC 2133's sockaddr_in6, which the kernel still takes, and today's


@dataclass(slots=True)
class Question:
    """A call of a guest thread; `sock` is a duplicate of its descriptor, `host` whether that is of our network."""

    id: int
    tid: int
    nr: int
    args: tuple[int, int, int, int, int, int]
    sock: socket.socket
    host: bool
    addr: bytes
    start_ns: int
    program: str = "?"
    told: Any = None  # what those said who were asked beside the rules: a Decision; of datagrams, what was found
    _end: Endpoint | None = None

    @classmethod
    def from_event(cls, event: _core.Event) -> Question:
        _, call, tid, nr, args, fd, domain, kind, host, addr, _, _, start, _, program = event
        if fd < 0:  # socket(2): there is none yet
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.close()
        else:
            sock = socket.socket(domain, kind, 0, fileno=fd)
        return cls(call, tid, nr, args, sock, bool(host), addr, start, shown(program))

    @property
    def blocking(self) -> bool:
        return os.get_blocking(self.sock.fileno())

    def endpoint(self) -> Endpoint | None:
        """The address argument, or None where it is not one of the socket's family: then the kernel words the error."""
        if self._end is not None:
            return self._end
        raw, family = self.addr, self.sock.family
        if len(raw) < 2 or int.from_bytes(raw[:2], "little") != family:
            return None
        if family == socket.AF_INET6 and SHORTEST6 <= len(raw) < WHOLE6:
            raw = raw.ljust(WHOLE6, b"\0")
        with suppress(AddressError):
            self._end = Endpoint.from_sockaddr(raw)
        return self._end


def shown(program: bytes) -> str:
    """A program's short name, which may be any bytes."""
    return program.decode(errors="replace")
