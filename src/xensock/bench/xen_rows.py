"""What `xensock bench xen` measures in a domU: sockets over its network interface, netfront's, against own sockets at
a backend. Both reach the same server (xen_far.py)."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from xensock.bench import echo_client, xen_far
from xensock.bench.failure import BenchError
from xensock.bench.interleave import Pair
from xensock.bench.rows import Row, Target

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from xensock.bench.side import Setting

Address = tuple[str, int]
TARGETS = {"xen.rtt": Target(most=5000)}


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured: round trips, bytes of a stream, connections one after the other."""

    trips: int = 2000
    bytes: int = 64 << 20
    connections: int = 200


QUICK = Size(300, 8 << 20, 20)


def rows(address: Address, url: str, size: Size) -> list[Row]:
    """The rows, for a far end at that address and the backend `url`."""

    def row(name: str, unit: str, more: bool, figure: Callable[..., float]) -> Row:
        return Row(name, unit, more, partial(_pair, address, url, partial(figure, size)))

    return [
        row("xen.rtt", "µs", False, _round_trips),
        row("xen.out", "Mbit/s", True, _out),
        row("xen.in", "Mbit/s", True, _in),
        row("xen.connect", "µs", False, _connections),
    ]


@contextlib.contextmanager
def _pair(
    address: Address, url: str, figure: Callable[[Callable[[], socket.socket]], float], _: Setting
) -> Iterator[Pair]:
    import socket as standard

    import xensock
    from xensock.client import attachment

    try:
        xensock.attach(url)
    except (OSError, ValueError) as error:
        raise BenchError(
            f"cannot reach the backend {url}", str(error), "see docs/xen.md, Set up"
        ) from error

    def measured(connect: Callable[[Address], socket.socket]) -> float:
        try:
            return figure(partial(connect, address))
        except (OSError, EOFError) as error:
            raise BenchError(
                "the far end cannot be measured",
                str(error),
                f"run this in its domain: xensock bench xen --serve {address[0]}:{address[1]}",
            ) from error

    try:
        yield Pair(
            lambda: measured(lambda at: standard.create_connection(at)),
            lambda: measured(lambda at: xensock.create_connection(at)),
        )
    finally:
        attachment.detach()


@contextlib.contextmanager
def _asked(
    connect: Callable[[], socket.socket], what: bytes, count: int
) -> Iterator[socket.socket]:
    with connect() as sock:
        sock.sendall(xen_far.WANT.pack(what, count))
        yield sock


def _round_trips(size: Size, connect: Callable[[], socket.socket]) -> float:
    with _asked(connect, xen_far.ECHO, 0) as sock:
        echo_client.trips(sock, max(size.trips // 10, 1))  # warm
        return echo_client.trips(sock, size.trips)


def _out(size: Size, connect: Callable[[], socket.socket]) -> float:
    with _asked(connect, xen_far.TAKE, size.bytes) as sock:
        start = time.perf_counter()
        xen_far.give(sock, size.bytes)
        xen_far.exactly(sock, 1)  # counted where it arrives
        return size.bytes * 8 / (time.perf_counter() - start) / 1e6


def _in(size: Size, connect: Callable[[], socket.socket]) -> float:
    with _asked(connect, xen_far.GIVE, size.bytes) as sock:
        start = time.perf_counter()
        xen_far.take(sock, size.bytes)
        return size.bytes * 8 / (time.perf_counter() - start) / 1e6


def _connections(size: Size, connect: Callable[[], socket.socket]) -> float:
    start = time.perf_counter()
    for _ in range(size.connections):
        with _asked(connect, xen_far.ECHO, 0) as sock:
            sock.sendall(b"x")
            xen_far.exactly(sock, 1)
    return (time.perf_counter() - start) / size.connections * 1e6
