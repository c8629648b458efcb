"""The kernel's counts of a connection: to the byte, whatever state it is in."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from backkit import until
from xensock import _core
from xensock.pvcalls.serving.counting import State, cookie, counts, resumed

if TYPE_CHECKING:
    from collections.abc import Iterator

Begun = tuple[int, int, int, int]
OUT, IN = 0xFFFFFFF0, 0xFFFFFFFA  # so that both wrap


@pytest.fixture(params=["connected", "accepted"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket, Begun]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    near, far = (one, other) if request.param == "connected" else (other, one)
    with near, far:
        now = counts(near)
        yield near, far, (now.taken, now.given, OUT, IN)


def at(sock: socket.socket, begun: Begun, shown: int = IN, stop: int = -1) -> tuple[int, ...]:
    found = resumed(sock, begun, shown & 0xFFFFFFFF, stop)
    assert found is not None
    sent, read = (found.rx - OUT) & 0xFFFFFFFF, (found.tx - IN) & 0xFFFFFFFF
    return sent, read, found.shut, found.error


Pair = tuple[socket.socket, socket.socket, Begun]


def state(sock: socket.socket, wanted: State) -> None:
    until(lambda: counts(sock).state == wanted)


def test_bytes(pair: Pair) -> None:
    near, far, begun = pair
    near.send(b"x" * 20)
    far.send(b"y" * 30)
    assert near.recv(7) == b"y" * 7
    assert at(near, begun) == (20, 7, False, 0)
    near.recv(23)
    assert at(near, begun) == (20, 30, False, 0)


def test_bytes_that_nobody_takes(pair: Pair) -> None:
    near, _, begun = pair
    near.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += near.send(bytes(100_000))
    assert at(near, begun)[0] == sent


def test_ends(pair: Pair) -> None:
    near, far, begun = pair
    near.send(b"x" * 20)
    far.send(b"y" * 30)
    far.shutdown(socket.SHUT_WR)
    state(near, State.CLOSE_WAIT)
    assert at(near, begun) == (20, 0, False, 0)
    near.recv(29)
    assert at(near, begun) == (20, 29, False, 0)
    near.recv(1)
    assert near.recv(1) == b""
    assert at(near, begun) == (20, 30, False, 0)
    near.shutdown(socket.SHUT_WR)
    assert at(near, begun, IN + 30, (OUT + 20) & 0xFFFFFFFF) == (20, 30, True, 0)
    far.recv(100)
    state(near, State.CLOSE)
    assert at(near, begun, IN + 30, (OUT + 20) & 0xFFFFFFFF) == (20, 30, True, 0)


def test_ends_that_went_first(pair: Pair) -> None:
    near, far, begun = pair
    stop = (OUT + 20) & 0xFFFFFFFF
    near.send(b"x" * 20)
    near.shutdown(socket.SHUT_WR)
    assert at(near, begun, IN, stop) == (20, 0, True, 0)
    far.recv(100)
    far.send(b"y" * 30)
    far.shutdown(socket.SHUT_WR)
    state(near, State.CLOSE)
    near.recv(10)
    for shown in (IN, IN + 10):  # killed before the index was moved, or after it
        assert at(near, begun, shown, stop) == (20, 10, True, 0)
    near.recv(20)
    assert near.recv(1) == b""
    assert at(near, begun, IN + 10, stop) == (20, 30, True, 0)


def test_a_reset(pair: Pair) -> None:
    near, far, begun = pair
    far.send(b"y" * 30)
    near.recv(10)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    state(near, State.CLOSE)
    assert at(near, begun, IN + 10) == (0, 10, False, errno.ECONNRESET)
    # Whoever is told so is told once; it was no orderly end all the same.
    assert at(near, begun, IN + 10) == (0, 10, False, errno.ECONNRESET)


def test_a_reset_after_a_byte_that_was_not_shown(pair: Pair) -> None:
    near, far, begun = pair
    far.send(b"y")
    near.recv(1)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    state(near, State.CLOSE)
    assert at(near, begun) == (0, 1, False, errno.ECONNRESET)


def test_a_reset_after_the_end(pair: Pair) -> None:
    near, far, begun = pair
    near.send(b"x" * 20)
    far.send(b"y" * 30)
    far.shutdown(socket.SHUT_WR)
    state(near, State.CLOSE_WAIT)
    near.recv(10)
    far.close()  # with bytes that it has not read: a reset
    state(near, State.CLOSE)
    assert at(near, begun) == (20, 10, False, errno.EPIPE)


def test_an_end_further_on_than_was_noted(pair: Pair) -> None:
    near, far, begun = pair
    near.send(b"x" * 20)
    near.shutdown(socket.SHUT_WR)
    noted = (OUT + 15) & 0xFFFFFFFF
    assert at(near, begun, IN, noted) == (20, 0, True, 0)
    far.recv(100)
    far.shutdown(socket.SHUT_WR)
    state(near, State.CLOSE)
    assert at(near, begun, IN, noted) == (20, 0, True, 0)


@pytest.mark.parametrize("inline", [0, 1])
def test_urgent_bytes_that_wait(pair: Pair, inline: int) -> None:
    near, far, begun = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
    far.send(b"abc")
    far.send(b"u", socket.MSG_OOB)
    far.send(b"defg")
    until(lambda: came(near, 8))
    assert at(near, begun) == (0, 0, False, 0)
    assert near.recv(100) == b"abc"
    assert at(near, begun, IN + 3) == (0, 3, False, 0)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE) == inline


def came(sock: socket.socket, count: int) -> bool:
    """Whether so many bytes have come, urgent ones among them."""
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 136)
    return int.from_bytes(raw[128:136], "little") >= count


def test_one_that_was_reset_on_purpose(pair: Pair) -> None:
    near, far, begun = pair
    near.send(b"x" * 20)
    far.send(b"y" * 30)
    near.recv(30)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert _core.connect_start(near.fileno(), bytes(16), 0) == 0
    assert resumed(near, begun, IN + 30, -1) is None


def test_sockets_are_told_apart(pair: Pair) -> None:
    near, far, _ = pair
    assert cookie(near) != cookie(far)
    with near.dup() as same:
        assert cookie(same) == cookie(near)
