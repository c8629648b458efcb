"""Python's address tuples ⇄ endpoints, with the checks and words of the standard library's sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

from xensock.calls.address import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    Resolve = Callable[[str, int], str]


def failure(number: int) -> OSError:
    """The OSError of an errno, of the subclass that Python gives it."""
    return OSError(number, os.strerror(number))


def endpoint_of(family: int, address: Any, resolve: Resolve) -> Endpoint:
    """Read what a program gave as address; `resolve(host, family)` is asked for names.

    Raises TypeError, OverflowError as `socket.connect`, socket.gaierror for a name without address.
    """
    if not isinstance(address, tuple):
        word = "AF_INET6" if family == socket.AF_INET6 else "AF_INET"
        raise TypeError(f"{word} address must be tuple, not {type(address).__name__}")
    longest = 4 if family == socket.AF_INET6 else 2
    if not 2 <= len(address) <= longest:
        raise TypeError(
            "AF_INET6 address must be a tuple (host, port[, flowinfo[, scopeid]])"
            if family == socket.AF_INET6
            else "AF_INET address must be a pair (host, port)"
        )
    host, port, *rest = address
    number = port.__index__() if hasattr(port, "__index__") else None
    if number is None:
        raise TypeError(f"an integer is required (got type {type(port).__name__})")
    if not 0 <= number <= 0xFFFF:
        raise OverflowError("port must be 0-65535.")
    flow, scope = (*rest, 0, 0)[:2]
    if not 0 <= flow <= 0xFFFFF:
        raise OverflowError("flowinfo must be 0-1048575.")
    if isinstance(host, (bytes, bytearray)):
        host = bytes(host).decode("ascii")
    if not isinstance(host, str):
        raise TypeError(f"str, bytes or bytearray expected, not {type(host).__name__}")
    if "\0" in host:
        raise TypeError("host name must not contain null character")
    text, _, zone = _numeric(family, host, resolve).partition("%")
    if family == socket.AF_INET:
        return Endpoint(IPv4Address(text), number)
    if zone and not scope:
        scope = int(zone) if zone.isdigit() else socket.if_nametoindex(zone)
    return Endpoint(IPv6Address(text), number, scope, flow)


def _numeric(family: int, host: str, resolve: Resolve) -> str:
    if not host:
        return "0.0.0.0" if family == socket.AF_INET else "::"
    if host == "<broadcast>" and family == socket.AF_INET:
        return "255.255.255.255"
    try:
        socket.inet_pton(family, host.partition("%")[0])
        return host
    except OSError:
        return resolve(host, family)


def python_of(family: int, sockaddr: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
    """The tuple for an address that the backend told; the wildcard of the family when it told none."""
    if not sockaddr:
        return ("0.0.0.0", 0) if family == socket.AF_INET else ("::", 0, 0, 0)
    told = Endpoint.from_sockaddr(sockaddr).as_python()
    if len(told) == 4 and "%" not in told[0]:
        # As the standard library words it: ::ffff:192.0.2.1, not ::ffff:c000:201.
        return (socket.inet_ntop(socket.AF_INET6, sockaddr[8:24]), *told[1:])
    return told


def mapped(address: Any, own: bool) -> Any:
    """An address of AF_XENSOCK as one of AF_INET6, where IPv4 is mapped. Names are resolved by the backend of `own`
    sockets. Raises socket.gaierror."""
    if not isinstance(address, tuple) or not address or not isinstance(address[0], str):
        return address
    host, *rest = address
    if not host:
        return address
    with contextlib.suppress(OSError):
        socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        return address
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        from xensock.client import kernel, names

        asked = names.getaddrinfo if own else kernel.getaddrinfo
        host = asked(host, None, 0, socket.SOCK_STREAM)[0][4][0]
    return (host if ":" in host else f"::ffff:{host}", *rest)
