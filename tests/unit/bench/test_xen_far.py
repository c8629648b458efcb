"""The far end of `xensock bench xen`."""

from __future__ import annotations

import socket
import threading

import pytest

from xensock.bench import xen_far


def served(what: bytes) -> socket.socket:
    near, far = socket.create_server(("127.0.0.1", 0)), socket.socket()
    with near:
        far.connect(near.getsockname())
        thread = threading.Thread(target=xen_far.serve_one, args=(near.accept()[0],), daemon=True)
        thread.start()
    far.settimeout(10)
    far.sendall(what)
    return far


def test_it_echoes() -> None:
    with served(xen_far.WANT.pack(xen_far.ECHO, 0) + b"x" * 9000) as sock:
        assert xen_far.exactly(sock, 9000) == b"x" * 9000


def test_it_takes_and_says_so() -> None:
    count = 3 * xen_far.BLOCK + 5
    with served(xen_far.WANT.pack(xen_far.TAKE, count)) as sock:
        xen_far.give(sock, count)
        assert xen_far.exactly(sock, 1) == b"t"


def test_it_gives() -> None:
    count = 2 * xen_far.BLOCK + 1
    with served(xen_far.WANT.pack(xen_far.GIVE, count)) as sock:
        xen_far.take(sock, count)
        sock.sendall(b"x")
        assert xen_far.exactly(sock, 1) == b"x"


@pytest.mark.parametrize("read", [xen_far.exactly, xen_far.take])
def test_an_end_that_comes_early(read) -> None:  # type: ignore[no-untyped-def]
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"abc")
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(EOFError):
            read(near, 4)


def test_it_ends_with_its_listener() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=xen_far.serve, args=(listener,))
    thread.start()
    with socket.create_connection(listener.getsockname(), 10) as sock:
        sock.sendall(xen_far.WANT.pack(xen_far.ECHO, 0) + b"x")
        assert xen_far.exactly(sock, 1) == b"x"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)
    assert not thread.is_alive()
