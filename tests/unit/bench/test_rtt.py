"""Round trips: the echo server, the client that is measured."""

from __future__ import annotations

import socket
import threading

import pytest

from xensock.bench import echo_client, rtt
from xensock.bench.machine import LOOPBACK
from xensock.bench.side import Setting


def test_the_native_side_is_measured() -> None:
    with rtt.round_trips(Setting("xensock", LOOPBACK, trips=200), "direct") as pair:
        first, second = pair.native(), pair.native()
    assert 0 < first < 1e6
    assert 0 < second < 1e6


def test_a_server_that_leaves_is_an_error() -> None:
    near, far = socket.socketpair()
    with near:
        far.close()
        with pytest.raises(OSError, match=r"pipe|reset"):
            echo_client.trips(near, 1)


def test_a_reply_in_parts_is_one_trip() -> None:
    near, far = socket.socketpair()

    def answer() -> None:
        with far:
            far.recv(64)
            far.send(b"x" * 10)
            far.send(b"x" * 54)

    thread = threading.Thread(target=answer)
    thread.start()
    with near:
        assert echo_client.trips(near, 1) > 0
    thread.join()
