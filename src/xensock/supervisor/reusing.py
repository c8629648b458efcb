"""bind(2) and listen(2) of the guest's own sockets, past what is ours in its network and what it knows nothing of."""

from __future__ import annotations

import errno
import socket
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.supervisor import options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.supervisor.relay import Relay

NOWHERE = 0x7FFFFFFF  # a device that no network has


def bind_reusing(sock: socket.socket, local: Endpoint) -> None:
    """Bind past ended connections of ours on the same port, which the guest knows nothing of, and to addresses of the
    host, which IPv6 does not take for the guest's own in spite of the route; or beside our own name service."""
    with options.temporarily(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR):
        options.bind_anywhere(sock, local.as_python())


def bind(relay: Relay, sock: socket.socket, local: Endpoint, *, twin: bool) -> None:
    """bind(2) past what stands for destinations with this port. `twin`: a socket of the host's has the same name, and
    with it what the guest natively would meet; then as bind_reusing(). Raises OSError."""
    relay.release_port(local.port)
    call = partial(bind_reusing, sock, local) if twin else partial(sock.bind, local.as_python())
    try:
        call()
    except OSError as error:
        if error.errno != errno.EADDRINUSE or not _is_anywhere(local):
            raise
        with _beside(relay, sock, local.port):
            call()


def listen(relay: Relay, sock: socket.socket, backlog: int, *, twin: bool) -> None:
    """listen(2) past what bind() went past, and what came since: the kernel asks for conflicts anew. Raises OSError."""
    try:
        sock.listen(backlog)
    except OSError as error:
        local = Endpoint.from_python(sock.getsockname())
        if error.errno != errno.EADDRINUSE or not (twin or _is_anywhere(local)):
            raise
        reuse = options.temporarily(sock, socket.SOL_SOCKET, socket.SO_REUSEADDR)
        beside = _beside(relay, sock, local.port)
        with reuse if twin else nullcontext(), beside if _is_anywhere(local) else nullcontext():
            sock.listen(backlog)


def _is_anywhere(local: Endpoint) -> bool:
    return local.unmapped().host.is_unspecified


@contextmanager
def _beside(relay: Relay, sock: socket.socket, port: int) -> Iterator[None]:
    """Have the kernel see no conflict between this socket, bound to every address, and our listeners in use. (It finds
    theirs first, which are more specific.) The guest's own sockets have no device, so they still count."""
    with (
        relay.on_device(port),
        options.temporarily(sock, socket.SOL_SOCKET, options.SO_BINDTOIFINDEX, NOWHERE),
    ):
        yield
