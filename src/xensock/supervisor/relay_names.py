"""Names of the connections that guests make: what the far side sees is what the guest's own socket shows."""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.supervisor import options
from xensock.supervisor.rtnetlink import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.supervisor.relay_wire import MakeSocket

# Begins the connection to the address, and waits so many µs: 0, or the errno; EINPROGRESS where it is under way.
Start = Callable[[bytes, int], int]
Name = tuple[str, int] | tuple[str, int, int, int]

IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE = 24, 51  # the latter since Linux 6.3 (ip(7))
V6ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
PORTS = range(32768, 61000)  # from which a new network takes ports (ip_local_port_range)


@contextlib.contextmanager
def called_as(
    guest: socket.socket, far: socket.socket, target: Endpoint, make_socket: MakeSocket
) -> Iterator[Start]:
    """Meanwhile the guest's socket connects to `target` by the name of `far`, which is what the far side sees.

    One that has no name is given it. One that the program bound to a port alone cannot be bound again, and gets its
    address from the route. Not for several threads at once. `make_socket` makes those of the guest's network.
    """
    ours, theirs = (Endpoint.from_python(s.getsockname()).unmapped() for s in (guest, far))
    name = _name_for(guest, far) if theirs.port and _is_free(guest, ours, make_socket) else None
    inside = theirs.host.is_unspecified or theirs.host.is_loopback or target.host.is_loopback

    def start(address: bytes, wait_us: int) -> int:
        error = _core.connect_start(guest.fileno(), address, wait_us)
        if error == errno.EADDRNOTAVAIL and name is not None and not guest.getsockname()[1]:
            options.bind_beside(guest, name)  # others have the port, too
            error = _core.connect_start(guest.fileno(), address, wait_us)
        return error

    with contextlib.ExitStack() as stack:
        if name is not None:
            if _can_wait_for_port(guest, name):
                stack.enter_context(_port_at_connect(guest, name))
            else:
                # The host gives one port to connections of different destinations.
                options.bind_beside(guest, name)
        elif ours.port and ours.host.is_unspecified and not inside:
            kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
            link = make_socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
            stack.enter_context(link)
            with contextlib.suppress(OSError):  # in vain it has the guest's own address
                stack.enter_context(Layout(link).called_from(target.host, theirs.host))
        yield start


def _is_free(guest: socket.socket, ours: Endpoint, make_socket: MakeSocket) -> bool:
    """Whether the socket has no port. After an attempt that failed it goes on showing that attempt's."""
    return not ours.port or not options.is_bound(guest, make_socket)


def _name_for(guest: socket.socket, far: socket.socket) -> Name:
    host, port, *more = far.getsockname()
    host = host.partition("%")[0]  # the scope is among what follows
    if guest.family != socket.AF_INET6:
        host, more = host.removeprefix("::ffff:"), []
    elif ":" not in host:
        host = f"::ffff:{host}"
    return (host, port, *more)


def _can_wait_for_port(guest: socket.socket, name: Name) -> bool:
    if name[1] not in PORTS or (guest.family == socket.AF_INET6 and guest.getsockopt(*V6ONLY)):
        return False
    try:
        guest.getsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _port_at_connect(guest: socket.socket, name: Name) -> Iterator[None]:
    """Give the socket this name, whose port connect(2) takes meanwhile, as the only one of the socket's range.

    A port that bind(2) gives stays when the attempt fails, and the next one has another. And to bind an address of IPv6
    sets IPV6_V6ONLY, which cannot be changed once there is a port (__inet6_bind, net/ipv6/af_inet6.c).
    """
    port = name[1]
    address: Name = (name[0], 0) if len(name) == 2 else (name[0], 0, name[2], name[3])
    names = (IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE)
    before = [(option, guest.getsockopt(socket.IPPROTO_IP, option, 4)) for option in names]
    try:
        guest.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        options.bind_anywhere(guest, address)
        if guest.family == socket.AF_INET6:
            guest.setsockopt(*V6ONLY, 0)
        only = struct.pack("=I", port << 16 | port)
        guest.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, only)
        yield
    finally:
        for option, value in before:
            guest.setsockopt(socket.IPPROTO_IP, option, value)
