"""What the relay's tests share: a guest's and a host's namespace, and a relay between them."""

from __future__ import annotations

import select
import socket
import struct
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nskit import GUEST, HOST, Namespace
from xensock.calls.address import Endpoint
from xensock.supervisor.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STREAM = socket.SOCK_STREAM
OUT = select.POLLOUT
FAR4, FAR6 = "192.0.2.1", "2001:db8::1"


class Ground:
    def __init__(self) -> None:
        self.guest = Namespace(GUEST)
        self.host = Namespace(HOST)
        self.relay = Relay(self.guest.socket, self.host.socket)

    def close(self) -> None:
        self.relay.close()
        self.guest.close()
        self.host.close()

    def server(self, host: str = FAR4, port: int = 0, backlog: int = 512) -> socket.socket:
        sock = self.host.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        sock.settimeout(10)
        return sock

    def client(self, family: int = socket.AF_INET, *, blocking: bool = True) -> socket.socket:
        sock = self.guest.socket(family, STREAM)
        if not blocking:
            sock.setblocking(False)
        return sock

    def connect(self, guest: socket.socket, server: socket.socket, **more: object) -> int:
        return self.connect_to(guest, Endpoint.from_python(server.getsockname()), **more)

    def connect_to(self, guest: socket.socket, dest: Endpoint, **more: object) -> int:
        with guest.dup() as copy:  # as the supervisor holds it: for the call alone
            return self.relay.connect(copy, dest, **more)  # type: ignore[arg-type]

    @contextmanager
    def pair(self, host: str = FAR4) -> Iterator[tuple[socket.socket, socket.socket]]:
        """A guest's connected socket and the far program's."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with self.server(host) as server, self.client(family) as guest:
            assert self.connect(guest, server) == 0
            far, _ = server.accept()
            guest.settimeout(10)
            far.settimeout(10)
            with far:
                yield guest, far


def events(sock: socket.socket, milliseconds: int) -> int:
    """What poll(2) says about a socket, 0 when nothing."""
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT)
    found = poll.poll(milliseconds)
    return found[0][1] if found else 0


def read(sock: socket.socket, count: int) -> bytes:
    """Exactly so many bytes, fewer at the end of the stream."""
    got = bytearray()
    while len(got) < count and (chunk := sock.recv(count - len(got))):
        got += chunk
    return bytes(got)


def error_of(sock: socket.socket) -> int:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def hard_close(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
