"""Round trips of 64 bytes over one connection, to an echo server in a process of its own."""

from __future__ import annotations

import multiprocessing
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xensock.bench.interleave import Pair
from xensock.bench.process import GRACE, PATIENCE, output_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.bench.side import Setting

CLIENT = Path(__file__).with_name("echo_client.py")


@contextmanager
def round_trips(setting: Setting, datapath: str) -> Iterator[Pair]:
    """Microseconds a round trip takes."""
    with socket.create_server((str(setting.address), 0)) as listener, _echoing(listener):
        port = listener.getsockname()[1]
        client = [
            sys.executable, "-I", str(CLIENT), str(setting.address), str(port), str(setting.trips),
        ]  # fmt: skip
        limit = PATIENCE + setting.trips / 1000  # a trip may take a millisecond
        yield Pair(
            lambda: float(output_of(client, limit)),
            lambda: float(output_of(setting.in_guest(client, datapath), limit)),
        )


@contextmanager
def _echoing(listener: socket.socket) -> Iterator[None]:
    # fork: the listener goes with it, and nothing here has threads.
    process = multiprocessing.get_context("fork").Process(target=echo, args=(listener,))
    process.daemon = True
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join(GRACE)
        process.kill()
        process.join()
        process.close()


def echo(listener: socket.socket) -> None:
    """Send back what comes, one connection after the other, for ever."""
    while True:
        sock, _ = listener.accept()
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while data := sock.recv(4096):
                    sock.sendall(data)
            except ConnectionError:
                continue
