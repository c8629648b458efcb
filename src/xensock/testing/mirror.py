"""Two worlds side by side: every call is made in both, and must come to the same."""

from __future__ import annotations

import errno
import select
import socket as standard
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Make = "Callable[..., Any]"

PATIENCE_S = 10.0
HOST = "127.0.0.1"
EVENTS = select.POLLIN | select.POLLOUT | select.POLLRDHUP
SHOWN = EVENTS | select.POLLHUP


class DifferenceError(AssertionError):
    """The two came to different results."""


@dataclass(frozen=True)
class Both(Generic[T]):
    """The kernel's and the other's."""

    kernel: T
    other: T

    def each(self, call: Callable[[T], Any]) -> Any:
        """Make a call with both; what it came to. Raises DifferenceError."""
        return same(outcome(call, self.kernel), outcome(call, self.other))


def outcome(call: Callable[[T], Any], value: T) -> Any:
    """The result of call(value), or the name of its errno."""
    try:
        return call(value)
    except TimeoutError:
        return "timed out"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))


def same(kernel: Any, other: Any) -> Any:
    """That which both came to. Raises DifferenceError."""
    if kernel != other:
        raise DifferenceError(f"the kernel's sockets: {kernel!r}, the others: {other!r}")
    return kernel


def readiness(sock: Any) -> int:
    """What poll(2) says at once."""
    poll = select.poll()
    poll.register(sock, EVENTS)
    return next((seen & SHOWN for _, seen in poll.poll(0)), 0)


def same_readiness(socks: Both[Any], patience: float = PATIENCE_S) -> int:
    """The readiness of both once they agree: bytes and ends take their time. Raises DifferenceError."""
    deadline = time.monotonic() + patience
    while True:
        kernel, other = readiness(socks.kernel), readiness(socks.other)
        if kernel == other:
            return kernel
        if time.monotonic() > deadline:
            same(f"readiness {kernel:#x}", f"readiness {other:#x}")
        time.sleep(0.001)


def connected(make: Callable[..., Any]) -> tuple[Any, Any]:
    """A client and the server's end of its connection, over loopback."""
    with make(standard.AF_INET, standard.SOCK_STREAM) as listener:
        listener.bind((HOST, 0))
        listener.listen(1)
        client = make(standard.AF_INET, standard.SOCK_STREAM)
        try:
            # Waiting: after one that does not, Linux lets a second connect(2) succeed.
            client.connect(listener.getsockname())
            server, _ = listener.accept()
        except BaseException:
            client.close()
            raise
    client.settimeout(PATIENCE_S)
    server.settimeout(PATIENCE_S)
    return client, server


def bound(make: Callable[..., Any]) -> tuple[Any, Any]:
    """Two datagram sockets on loopback."""
    made = tuple(make(standard.AF_INET, standard.SOCK_DGRAM) for _ in range(2))
    for each in made:
        each.bind((HOST, 0))
        each.settimeout(PATIENCE_S)
    return made[0], made[1]


def at_once(sock: Any, call: Callable[[Any], Any]) -> Any:
    """A call that does not wait."""
    sock.settimeout(0)
    try:
        return call(sock)
    finally:
        sock.settimeout(PATIENCE_S)
