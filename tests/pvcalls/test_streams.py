"""TCP through the backend: what a v1 frontend sends arrives, and ends as it should."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest

from backkit import Front, Serving, free_port, front, pair, sockaddr, until
from xensock.wire.requests import Bind, Connect, Poll, Release

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def guest(serving: Serving) -> Iterator[Front]:
    with front(serving) as made:
        yield made


def accepted(server: socket.socket) -> socket.socket:
    peer, _ = server.accept()
    peer.settimeout(10)
    return peer


def drained(peer: socket.socket) -> bytes:
    return b"".join(iter(lambda: peer.recv(1 << 16), b""))


@pytest.mark.parametrize("order", range(1, 10))
def test_bytes_arrive_both_ways_in_order(guest: Front, server: socket.socket, order: int) -> None:
    id, stream = guest.socket(), guest.stream(order)
    request = Connect(id, sockaddr(*server.getsockname()), 0, stream.ref, stream.port)
    assert guest.ret(request) == 0
    sent = os.urandom(700_000)
    with accepted(server) as peer:
        echo = threading.Thread(target=lambda: [peer.sendall(peer.recv(65536)) for _ in [0]])
        echo.start()
        stream.send(b"hello")
        assert stream.recv_exactly(5) == b"hello"
        echo.join()
        writer = threading.Thread(target=stream.send, args=(sent,))
        writer.start()
        got = b""
        while len(got) < len(sent):
            got += peer.recv(65536)
        writer.join()
        assert got == sent
        writer = threading.Thread(target=peer.sendall, args=(sent,))
        writer.start()
        assert stream.recv_exactly(len(sent)) == sent
        writer.join()


def test_what_was_written_before_release_is_delivered(guest: Front, server: socket.socket) -> None:
    """Linux's backend throws `out` away (RELEASE of a socket that still has bytes to send)."""
    id, stream, response = guest.connect(server.getsockname())
    assert response.ret == 0
    sent = os.urandom(stream.ring.size)
    stream.send(sent)
    assert guest.ret(Release(id)) == 0
    stream.pages.memory[:] = bytes(len(stream.pages.memory))  # the pages are ours again
    with accepted(server) as peer:
        assert drained(peer) == sent


def test_an_orderly_end_comes_after_the_data(guest: Front, server: socket.socket) -> None:
    _, stream, _ = guest.connect(server.getsockname())
    with accepted(server) as peer:
        peer.sendall(b"last words")
    assert stream.recv_all() == b"last words"
    assert stream.ring.in_error == -errno.ENOTCONN


def test_a_reset_is_told_as_a_reset(guest: Front, server: socket.socket) -> None:
    _, stream, _ = guest.connect(server.getsockname())
    with accepted(server) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with pytest.raises(ConnectionResetError):
        stream.recv()
    until(lambda: stream.ring.out_error == -errno.ECONNRESET)


def test_a_guest_that_vanishes_leaves_its_last_bytes_and_an_end(
    serving: Serving, server: socket.socket
) -> None:
    near, far = pair()
    serving.serve(far)
    made = Front(near).handshake()
    _, stream, _ = made.connect(server.getsockname())
    stream.send(b"last words")
    made.close()
    with accepted(server) as peer:
        assert drained(peer) == b"last words"
    until(lambda: near.world.reason is not None)


def test_connections_are_accepted_in_order_and_carry_data(guest: Front) -> None:
    port = free_port()
    listener = guest.listener(port=port)
    waiting = [guest.accept(listener) for _ in range(3)]
    for number, (cookie, _, stream) in enumerate(waiting):
        with socket.create_connection(("127.0.0.1", port), 5) as peer:
            response = guest.result(cookie)
            assert (response.ret, response.id, response.body) == (0, listener, bytes(40))
            peer.sendall(b"%d" % number)
            assert stream.recv() == b"%d" % number
            stream.send(b"back")
            assert peer.recv(10) == b"back"
        assert stream.recv() == b""
    for _, id, _ in waiting:
        assert guest.ret(Release(id)) == 0


def test_a_connection_that_waited_is_accepted_at_once(guest: Front) -> None:
    port = free_port()
    listener = guest.listener(port=port)
    with socket.create_connection(("127.0.0.1", port), 5) as peer:
        assert guest.ret(Poll(listener)) == 0
        cookie, _, stream = guest.accept(listener)
        assert guest.result(cookie).ret == 0
        peer.sendall(b"x")
        assert stream.recv() == b"x"


def test_connections_outlive_their_listener(guest: Front) -> None:
    port = free_port()
    listener = guest.listener(port=port)
    cookie, _, stream = guest.accept(listener)
    with socket.create_connection(("127.0.0.1", port), 5) as peer:
        assert guest.result(cookie).ret == 0
        assert guest.ret(Release(listener)) == 0
        stream.send(b"still here")
        assert peer.recv(20) == b"still here"


def test_a_bound_socket_connects_from_its_port(guest: Front, server: socket.socket) -> None:
    """Linux's backend makes another socket for it."""
    port = free_port()
    id, stream = guest.socket(), guest.stream()
    assert guest.ret(Bind(id, sockaddr("127.0.0.1", port))) == 0
    request = Connect(id, sockaddr(*server.getsockname()), 0, stream.ref, stream.port)
    assert guest.ret(request) == 0
    with server.accept()[0] as peer:
        assert peer.getpeername() == ("127.0.0.1", port)
    assert guest.ret(Connect(id, request.address, 0, 1, 1)) == -errno.EISCONN


def test_an_unanswered_connect_delays_nobody(serving: Serving) -> None:
    """Linux's backend connects in the command ring's thread."""
    with socket.socket() as full, front(serving) as guest, front(serving) as other:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        id, stream = guest.socket(), guest.stream()
        address = sockaddr(*full.getsockname())
        cookie = guest.submit(Connect(id, address, 0, stream.ref, stream.port))
        assert guest.ret(Release(guest.socket())) == 0
        assert other.ret(Release(other.socket())) == 0
        assert guest.ret(Connect(id, address, 0, stream.ref, stream.port)) == -errno.EALREADY
        assert guest.pending(cookie)
        assert guest.ret(Release(id)) == 0
        assert guest.result(cookie).ret == -errno.EBADF
        for filler in fillers:
            filler.close()


def test_a_refused_socket_can_connect_elsewhere(guest: Front, server: socket.socket) -> None:
    id, stream, response = guest.connect(("127.0.0.1", free_port()))
    assert response.ret == -errno.ECONNREFUSED
    again = guest.stream()
    request = Connect(id, sockaddr(*server.getsockname()), 0, again.ref, again.port)
    assert guest.ret(request) == 0
    assert stream.ring.in_error == 0


def test_records_and_counters(serving: Serving, server: socket.socket) -> None:
    with front(serving) as guest:
        id, stream, _ = guest.connect(server.getsockname())
        with accepted(server) as peer:
            stream.send(b"12345")
            assert peer.recv(10) == b"12345"
            peer.sendall(b"123")
            assert stream.recv_exactly(3) == b"123"
        assert guest.ret(Release(id)) == 0
        counted = until(lambda: (c := serving.call(serving.backend.counters)).sent == 5 and c)
        assert (counted.connections, counted.received) == (1, 3)
        (record,) = [r for r in serving.records if r.verb == "connect"]
        assert (record.decision, record.datapath, record.error) == ("allow", "ring", 0)
        assert record.rule == "loopback"
        assert record.pid == os.getpid()
    until(lambda: not serving.backend.sessions)
    assert serving.call(serving.backend.counters).sent == 5


def test_the_guests_own_listener_needs_no_rule() -> None:
    with Serving(allow=()) as serving, front(serving) as guest, front(serving) as other:
        port = free_port()
        listener = guest.listener("0.0.0.0", port)
        cookie, _, far = guest.accept(listener)
        _, near, response = guest.connect(("127.0.0.1", port))
        assert response.ret == 0
        assert guest.result(cookie).ret == 0
        near.send(b"to myself")
        assert far.recv() == b"to myself"
        _, _, response = other.connect(("127.0.0.1", port))
        assert response.ret == -errno.EACCES
        outcomes = [r.decision for r in serving.records if r.verb == "connect"]
        assert outcomes == ["guest", "deny"]
