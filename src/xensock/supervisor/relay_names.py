"""Names of the connections that guests make: what the far side sees is what the guest's own socket shows."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.supervisor import options
from xensock.supervisor.rtnetlink import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.supervisor.relay_wire import MakeSocket


@contextlib.contextmanager
def called_as(
    guest: socket.socket, far: socket.socket, target: Endpoint, make_socket: MakeSocket
) -> Iterator[None]:
    """Meanwhile the guest's socket connects to `target` by the name of `far`, which is what the far side sees.

    One that has no name is given it. One that the program bound to a port alone cannot be bound again, and gets its
    address from the route. Not for several threads at once. `make_socket` makes those of the guest's network.
    """
    ours, theirs = (Endpoint.from_python(s.getsockname()).unmapped() for s in (guest, far))
    if not ours.port:
        _name_like(guest, far)
    inside = theirs.host.is_unspecified or theirs.host.is_loopback or target.host.is_loopback
    with contextlib.ExitStack() as stack:
        if ours.port and ours.host.is_unspecified and not inside:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            link = make_socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            stack.enter_context(link)
            with contextlib.suppress(OSError):  # in vain it has the guest's own address
                stack.enter_context(Layout(link).called_from(target.host, theirs.host))
        yield


def _name_like(guest: socket.socket, far: socket.socket) -> None:
    host, port, *more = far.getsockname()
    if not port:
        return
    host = host.partition("%")[0]  # the scope is among what follows
    if guest.family != socket.AF_INET6:
        host, more = host.removeprefix("::ffff:"), []
    elif ":" not in host:
        host = f"::ffff:{host}"
    # The host gives one port to connections of different destinations.
    options.bind_beside(guest, (host, port, *more))
