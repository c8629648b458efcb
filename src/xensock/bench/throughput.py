"""Bulk bytes over TCP, by iperf3: sent, received and served by the side that is measured.

The other end is always native. Bytes are counted where they arrive.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xensock.bench.failure import BenchError
from xensock.bench.interleave import Pair
from xensock.bench.machine import free_port
from xensock.bench.process import output_of, serving, tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xensock.bench.side import Setting

READY = "Server listening"
# A server that is between two tests: it has closed its listener, or has yet to let the last client go.
BETWEEN = ("the server is busy", "unable to connect to server: Connection refused")
START = 20.0


@contextmanager
def sending(setting: Setting, datapath: str, streams: int, reverse: bool) -> Iterator[Pair]:
    """A client on the measured side and a native server; `reverse`: the client receives."""
    iperf3, port = tool("iperf3"), free_port(setting.address)
    client = _client(setting, port, streams, reverse)
    with serving(
        [iperf3, "-s", "--forceflush", "-B", str(setting.address), "-p", str(port)], READY
    ):
        yield Pair(
            lambda: _gbits(client, setting.seconds),
            lambda: _gbits(setting.in_guest(client, datapath), setting.seconds),
        )


@contextmanager
def served(setting: Setting, datapath: str, streams: int) -> Iterator[Pair]:
    """A server on the measured side and a native client, which sends."""
    iperf3 = tool("iperf3")
    ports = [free_port(setting.address) for _ in range(2)]
    # A guest's 127.0.0.1 is its own, so there the server listens on all its addresses.
    at = [] if setting.address.is_loopback else ["-B", str(setting.address)]
    servers = [[iperf3, "-s", "--forceflush", *at, "-p", str(port)] for port in ports]
    clients = [_client(setting, port, streams, reverse=False) for port in ports]
    with serving(servers[0], READY), serving(setting.in_guest(servers[1], datapath), READY):
        yield Pair(
            lambda: _gbits(clients[0], setting.seconds),
            lambda: _gbits(clients[1], setting.seconds),
        )


def _client(setting: Setting, port: int, streams: int, reverse: bool) -> list[str]:
    return [
        tool("iperf3"), "-J", "-c", str(setting.address), "-p", str(port),
        "-t", str(setting.seconds), "-P", str(streams), *(["-R"] if reverse else []),
    ]  # fmt: skip


def _gbits(argv: Sequence[str], seconds: int) -> float:
    """Run a client; Gbit/s that arrived."""
    deadline = time.monotonic() + START
    while True:
        try:
            return parse(output_of(argv, seconds + START))
        except BenchError as error:
            if time.monotonic() > deadline or not any(why in error.cause for why in BETWEEN):
                raise
            time.sleep(0.02)


def parse(report: str) -> float:
    """Gbit/s that arrived, from the JSON of a client. Raises BenchError if nothing did."""
    try:
        read = json.loads(report)
        # A client may report an error and still exit with 0.
        error = read.get("error", "no byte arrived")
        gbits = float(read["end"].get("sum_received", {}).get("bits_per_second", 0)) / 1e9
    except (ValueError, KeyError, TypeError, AttributeError) as caught:
        raise BenchError(
            "cannot read what iperf3 reports",
            f"{type(caught).__name__}: {caught}",
            "install iperf3 3.1 or later",
        ) from caught
    if gbits <= 0:
        raise BenchError("iperf3 moved nothing", error, "repeat it")
    return gbits
