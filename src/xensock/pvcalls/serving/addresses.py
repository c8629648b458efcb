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


def name_of(address: tuple[str, int]) -> bytes:
    """A struct sockaddr from Python's tuple."""
    return Endpoint.from_python(address).sockaddr()


def own_end(held: Held) -> Endpoint | None:
    """The socket's own address; None for unix sockets, which have none here."""
    if held.joined is not None:
        return held.joined.own
    if held.family == socket.AF_UNIX:
        return None
    return Endpoint.from_python(held.host.getsockname())


def peer_end(held: Held) -> Endpoint | None:
    """The peer's address; None for unix sockets. Raises OSError(ENOTCONN)."""
    if held.joined is not None:
        return held.joined.peer
    if held.family == socket.AF_UNIX:
        return None
    return Endpoint.from_python(held.host.getpeername())


def own_name(held: Held) -> bytes:
    """The socket's own address as a struct sockaddr, empty where it has none."""
    end = own_end(held)
    return end.sockaddr() if end is not None else b""


def peer_name(held: Held) -> bytes:
    """The peer's address as a struct sockaddr, empty where it has none. Raises OSError(ENOTCONN)."""
    end = peer_end(held)
    return end.sockaddr() if end is not None else b""
