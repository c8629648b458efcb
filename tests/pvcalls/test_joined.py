"""Two guests of one backend: their connection is in memory, and looks as TCP's."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backkit import Front, Serving, Stream, free_port, front, sockaddr, until
from xensock.calls.address import Endpoint
from xensock.pvcalls.serving import joining
from xensock.pvcalls.serving.held import Held
from xensock.wire.extensions import ALL, Extension
from xensock.wire.requests import (
    Accept,
    Bind,
    Close,
    Connect,
    GetName,
    GetOption,
    Listen,
    Poll,
    Release,
    SetOption,
    Shutdown,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY = ALL - {Extension.SHARED_RINGS}
RESET_TIME = struct.pack("ii", 1, 0)


@pytest.fixture
def one(serving: Serving) -> Iterator[Front]:
    with front(serving, EVERY) as made:
        yield made


@pytest.fixture
def two(serving: Serving) -> Iterator[Front]:
    with front(serving, EVERY) as made:
        yield made


class Pair:
    """A connection from guest `two` to a listener of guest `one`."""

    def __init__(self, one: Front, two: Front, host: str = "127.0.0.1", order: int = 3) -> None:
        self.port = free_port()
        self.listener = one.listener(host, self.port)
        self.server = one.stream(order)
        self.server_id = one.new_id()
        accept = Accept(self.listener, self.server_id, self.server.ref, self.server.port)
        cookie = one.submit(accept)
        self.client_id, self.client = two.socket(), two.stream(order)
        address = sockaddr("127.0.0.1", self.port)
        request = Connect(self.client_id, address, 0, self.client.ref, self.client.port)
        self.connected = two.command(request)
        assert self.connected.ret == 0
        self.accepted = one.result(cookie)
        assert self.accepted.ret == 0


def kernel_connections(port: int) -> int:
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(f":{port:04X} " in line and line.split()[3] == "01" for line in lines)


def passes(sender: Stream, receiver: Stream, data: bytes) -> None:
    writer = threading.Thread(target=sender.send, args=(data,))
    writer.start()
    assert receiver.recv_exactly(len(data)) == data
    writer.join()


def test_bytes_move_both_ways_without_the_kernel(one: Front, two: Front) -> None:
    pair = Pair(one, two)
    passes(pair.client, pair.server, os.urandom(500_000))
    passes(pair.server, pair.client, os.urandom(500_000))
    assert kernel_connections(pair.port) == 0


def test_a_v1_frontend_is_joined_too(serving: Serving, one: Front) -> None:
    with front(serving) as old:
        pair = Pair(one, old)
        assert pair.connected.body == bytes(40)
        passes(pair.client, pair.server, os.urandom(200_000))
        passes(pair.server, pair.client, os.urandom(200_000))
        assert kernel_connections(pair.port) == 0


def test_names_are_tcps(one: Front, two: Front) -> None:
    pair = Pair(one, two, "0.0.0.0")
    server = sockaddr("127.0.0.1", pair.port)
    client = pair.connected.address
    assert client[:8] == sockaddr("127.0.0.1", int.from_bytes(client[2:4], "big"))[:8]
    assert client[2:4] != bytes(2)
    assert pair.accepted.address == client
    assert two.command(GetName(pair.client_id, 0)).address == client
    assert two.command(GetName(pair.client_id, 1)).address == server
    assert one.command(GetName(pair.server_id, 0)).address == server
    assert one.command(GetName(pair.server_id, 1)).address == client
    # Nobody else can have the client's port.
    other = two.socket()
    assert two.ret(Bind(other, client)) == -errno.EADDRINUSE


def test_a_bound_client_keeps_its_port(one: Front, two: Front) -> None:
    port = free_port()
    listening = free_port()
    listener = one.listener(port=listening)
    cookie, _, _ = one.accept(listener)
    id, stream = two.socket(), two.stream()
    assert two.ret(Bind(id, sockaddr("0.0.0.0", port))) == 0
    request = Connect(id, sockaddr("127.0.0.1", listening), 0, stream.ref, stream.port)
    assert two.command(request).address == sockaddr("127.0.0.1", port)
    assert one.result(cookie).address == sockaddr("127.0.0.1", port)


def test_an_ipv6_listener_sees_mapped_names(one: Front, two: Front) -> None:
    port = free_port()
    listener = one.socket(socket.AF_INET6)
    if one.ret(Bind(listener, sockaddr("::", port))):
        pytest.skip("this host has no IPv6")
    assert one.ret(Listen(listener, 1)) == 0
    cookie, id, _ = one.accept(listener)
    _, _, response = two.connect(("127.0.0.1", port))
    assert response.ret == 0
    number = int.from_bytes(response.address[2:4], "big")
    assert one.result(cookie).address == sockaddr("::ffff:127.0.0.1", number)
    assert one.command(GetName(id, 0)).address == sockaddr("::ffff:127.0.0.1", port)
    assert kernel_connections(port) == 0


def test_half_close_in_both_directions(one: Front, two: Front) -> None:
    pair = Pair(one, two)
    pair.client.send(b"question")
    assert two.ret(Shutdown(pair.client_id, 1)) == 0
    assert pair.server.recv_all() == b"question"
    assert pair.server.ring.out_error == 0
    pair.server.send(b"answer")
    assert one.ret(Shutdown(pair.server_id, 1)) == 0
    assert pair.client.recv_all() == b"answer"


def test_what_was_written_before_release_arrives(one: Front, two: Front) -> None:
    pair = Pair(one, two)
    sent = os.urandom(pair.client.ring.size)
    pair.client.send(sent)
    assert two.ret(Release(pair.client_id)) == 0
    assert pair.server.recv_all() == sent


def test_a_reset_is_told_as_a_reset(one: Front, two: Front) -> None:
    pair = Pair(one, two)
    assert two.ret(Close(pair.client_id, 1)) == 0
    with pytest.raises(ConnectionResetError):
        pair.server.recv()
    again = Pair(one, two)
    assert one.ret(SetOption(again.server_id, 1, socket.SO_LINGER, RESET_TIME)) == 0
    assert one.ret(Release(again.server_id)) == 0
    with pytest.raises(ConnectionResetError):
        again.client.recv()


def test_a_slow_reader_holds_its_writer_back(one: Front, two: Front) -> None:
    pair = Pair(one, two, order=1)
    data = os.urandom(100_000)
    writer = threading.Thread(target=pair.client.send, args=(data,))
    writer.start()
    writer.join(0.1)
    assert writer.is_alive()
    assert pair.server.recv_exactly(len(data)) == data
    writer.join()


def test_a_connection_waits_in_the_queue(one: Front, two: Front) -> None:
    port = free_port()
    listener = one.listener(port=port)
    poll = one.submit(Poll(listener))
    assert one.pending(poll)
    client, stream, response = two.connect(("127.0.0.1", port))
    assert response.ret == 0
    assert one.result(poll).ret == 0
    stream.send(b"early")
    assert two.ret(Release(client)) == 0
    cookie, _, served = one.accept(listener)
    assert one.result(cookie).ret == 0
    assert served.recv_all() == b"early"


def test_a_full_queue_makes_connects_wait(one: Front, two: Front) -> None:
    port = free_port()
    listener = one.listener(port=port, backlog=0)
    _, _, first = two.connect(("127.0.0.1", port))
    assert first.ret == 0
    id, stream = two.socket(), two.stream()
    address = sockaddr("127.0.0.1", port)
    waiting = two.submit(Connect(id, address, 0, stream.ref, stream.port))
    assert two.pending(waiting)
    asynchronous, far = two.socket(), two.stream()
    assert two.ret(Connect(asynchronous, address, 1, far.ref, far.port)) == -errno.EINPROGRESS
    taken = [one.accept(listener) for _ in range(3)]
    assert two.result(waiting).ret == 0
    until(lambda: far.ring.status == 1)
    assert {one.result(cookie).ret for cookie, _, _ in taken} == {0}
    id = two.socket()
    other = two.stream()
    assert two.ret(Connect(id, address, 0, other.ref, other.port)) == 0
    again = two.socket(), two.stream()
    late = two.submit(Connect(again[0], address, 0, again[1].ref, again[1].port))
    assert two.pending(late)
    assert two.ret(Release(again[0])) == 0
    assert two.result(late).ret == -errno.EBADF


def test_a_listener_that_goes_resets_what_waits(one: Front, two: Front) -> None:
    port = free_port()
    listener = one.listener(port=port)
    _, stream, response = two.connect(("127.0.0.1", port))
    assert response.ret == 0
    assert one.ret(Release(listener)) == 0
    with pytest.raises(ConnectionResetError):
        stream.recv()
    _, _, response = two.connect(("127.0.0.1", port))
    assert response.ret == -errno.ECONNREFUSED


def test_connections_from_elsewhere_are_accepted_beside(one: Front, two: Front) -> None:
    port = free_port()
    listener = one.listener(port=port)
    with socket.create_connection(("127.0.0.1", port), 5) as outside:
        _, inside, _ = two.connect(("127.0.0.1", port))
        inside.send(b"inside")
        outside.sendall(b"outside")
        seen = set()
        for _ in range(2):
            cookie, _, stream = one.accept(listener)
            assert one.result(cookie).ret == 0
            seen.add(stream.recv())
        assert seen == {b"inside", b"outside"}


def test_a_guest_that_vanishes(serving: Serving, one: Front) -> None:
    with front(serving, EVERY) as two:
        pair = Pair(one, two)
        pair.client.send(b"last words")
    assert pair.server.recv_all() == b"last words"
    with pytest.raises(OSError, match="out_error"):
        pair.server.send(bytes(1_000_000))


def test_options_of_an_accepted_one_are_its_listeners(one: Front, two: Front) -> None:
    port = free_port()
    listener = one.listener(port=port)
    on = struct.pack("i", 1)
    assert one.ret(SetOption(listener, 6, socket.TCP_NODELAY, on)) == 0
    cookie, id, _ = one.accept(listener)
    two.connect(("127.0.0.1", port))
    assert one.result(cookie).ret == 0
    assert one.command(GetOption(id, 6, socket.TCP_NODELAY, 4)).value == on
    assert one.ret(SetOption(id, 6, socket.TCP_NODELAY, bytes(4))) == 0
    assert one.command(GetOption(id, 6, socket.TCP_NODELAY, 4)).value == bytes(4)


def test_policy_records_and_counters_are_tcps() -> None:
    with (
        Serving(allow=("loopback", "listen:any"), deny=("loopback:7777",)) as serving,
        front(serving, EVERY) as one,
        front(serving, EVERY) as two,
    ):
        id = one.socket()
        assert one.ret(Bind(id, sockaddr("127.0.0.1", 7777))) in (0, -errno.EADDRINUSE)
        one.command(Listen(id, 1))
        assert two.connect(("127.0.0.1", 7777))[2].ret == -errno.EACCES
        pair = Pair(one, two)
        passes(pair.client, pair.server, b"12345")
        passes(pair.server, pair.client, b"123")
        verbs = [(r.verb, r.decision, r.datapath) for r in serving.records][-2:]
        assert verbs == [("connect", "allow", "ring"), ("accept", "guest", "ring")]
        guests = [s.guest for s in serving.backend.sessions.values()]
        server, client = (serving.call(serving.backend.counters, g) for g in guests)
        assert (client.connections, client.sent, client.received) == (1, 5, 3)
        assert (server.accepted, server.sent, server.received) == (1, 3, 5)
        assert two.ret(Release(pair.client_id)) == 0
        assert one.ret(Release(pair.server_id)) == 0
        until(lambda: not serving.backend.tokens)
        total = serving.call(serving.backend.counters)
        assert (total.sent, total.received) == (8, 8)


@pytest.mark.parametrize(
    ("address", "joined"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("0.0.0.0", True), ("192.0.2.1", False)],
)
def test_only_this_hosts_addresses_are_joined(
    serving: Serving, one: Front, address: str, joined: bool
) -> None:
    port = free_port()
    one.listener("0.0.0.0", port)
    (session,) = serving.backend.sessions.values()
    with socket.socket() as sock:
        held = Held(session.guest, 99, socket.AF_INET, socket.SOCK_STREAM, 0, sock)
        way = serving.call(joining.way, held, Endpoint.from_python((address, port)))
        assert (way is not None) == joined
        serving.call(serving.backend.ports.forget, held)


def test_a_listener_of_one_address_hears_only_that(serving: Serving, one: Front) -> None:
    port = free_port()
    one.listener("127.0.0.2", port)
    ports = serving.backend.ports
    assert ports.listener(Endpoint.from_python(("127.0.0.2", port))) is not None
    assert ports.listener(Endpoint.from_python(("127.0.0.1", port))) is None
    assert ports.listener(Endpoint.from_python(("::1", port))) is None
