"""`create_connection` and `create_server`, as the standard library's."""

from __future__ import annotations

import errno
import os
import socket as standard
from typing import TYPE_CHECKING, Any

from xensock.client.names import getaddrinfo
from xensock.client.sockets import socket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xensock.client.link import Link

    Address = tuple[str | None, int]

# What http.client and its like pass for "none given".
_DEFAULT: Any = standard._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]


def create_connection(
    address: Address,
    timeout: Any = _DEFAULT,
    source_address: Address | None = None,
    *,
    all_errors: bool = False,
) -> socket:
    """Connect to the first address of (host, port) that answers; `timeout` in seconds holds for each.

    Raises OSError of the last attempt, or ExceptionGroup of all with `all_errors`; socket.gaierror.
    """
    failures: list[Exception] = []
    for family, kind, proto, _, where in getaddrinfo(*address, 0, standard.SOCK_STREAM):
        made = None
        try:
            made = socket(family, kind, proto)
            if timeout is not _DEFAULT:
                made.settimeout(timeout)
            if source_address:
                made.bind(source_address)
            made.connect(where)
        except OSError as error:
            failures.append(error)
            if made is not None:
                made.close()
        else:
            return made
    if not failures:
        raise OSError("getaddrinfo returns an empty list")
    try:
        if all_errors:
            raise ExceptionGroup("create_connection failed", failures)
        raise failures[-1]
    finally:
        failures.clear()  # they hold this frame, and it holds them


def create_server(
    address: Address,
    *,
    family: int = standard.AF_INET,
    backlog: int | None = None,
    reuse_port: bool = False,
    dualstack_ipv6: bool = False,
    link: Link | None = None,
) -> socket:
    """A listening socket at (host, port); port 0 is one of the host's choice. Raises OSError, ValueError."""
    if dualstack_ipv6 and family != standard.AF_INET6:
        raise ValueError("dualstack_ipv6 requires AF_INET6 family")
    made = socket(family, standard.SOCK_STREAM, link=link)
    try:
        made.setsockopt(standard.SOL_SOCKET, standard.SO_REUSEADDR, 1)
        if reuse_port:
            made.setsockopt(standard.SOL_SOCKET, standard.SO_REUSEPORT, 1)
        if family == standard.AF_INET6:
            only = 0 if dualstack_ipv6 else 1
            made.setsockopt(standard.IPPROTO_IPV6, standard.IPV6_V6ONLY, only)
        try:
            made.bind(address)
        except OSError as error:
            number = error.errno or errno.EIO
            raise OSError(
                number, f"{os.strerror(number)} (while attempting to bind on address {address!r})"
            ) from None
        made.listen(128 if backlog is None else backlog)
    except BaseException:
        made.close()
        raise
    return made


def socket_functions() -> Iterable[tuple[str, Any]]:
    """What `install` puts into the standard module, by name."""
    # create_connection and its like are made of these two.
    yield "socket", socket
    yield "getaddrinfo", getaddrinfo
