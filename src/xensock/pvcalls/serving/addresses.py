"""Addresses of requests and responses."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from xensock.calls.address import AddressError, Endpoint
from xensock.calls.call import Decision
from xensock.pvcalls.serving.limits import refuse

if TYPE_CHECKING:
    from xensock.pvcalls.serving.held import Held

OWN = Decision(True, "the guest's own loopback")


def endpoint(held: Held, address: bytes) -> Endpoint:
    """The endpoint in a request. Raises OSError as connect(2) and bind(2) do: EINVAL when it is too
    short, EAFNOSUPPORT for an address of another family than the socket's."""
    try:
        end = Endpoint.from_sockaddr(address)
    except AddressError as error:
        raise refuse(error.errno) from error
    if end.family != held.family:
        raise refuse(errno.EAFNOSUPPORT)
    return end


def own_name(held: Held) -> bytes:
    """The socket's own address as a struct sockaddr; none for unix sockets, which have no name here."""
    if held.family == socket.AF_UNIX:
        return b""
    return name_of(held.host.getsockname())


def name_of(address: tuple[str, int]) -> bytes:
    """A struct sockaddr from Python's tuple."""
    return Endpoint.from_python(address).sockaddr()


def peer_name(held: Held) -> bytes:
    """The peer's address as a struct sockaddr. Raises OSError(ENOTCONN)."""
    if held.family == socket.AF_UNIX:
        return b""
    return name_of(held.host.getpeername())
