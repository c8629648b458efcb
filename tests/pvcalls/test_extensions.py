"""Extensions of PV Calls, one by one, on a backend that serves them."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from backkit import Front, Serving, Stream, free_port, front, sockaddr, until
from xensock import _core
from xensock.calls.address import Endpoint
from xensock.wire import indexes, requests
from xensock.wire.errors import ENOTSUP
from xensock.wire.extensions import ALL, Extension
from xensock.wire.requests import (
    Accept,
    Bind,
    Close,
    Connect,
    GetName,
    GetOption,
    Listen,
    Release,
    SetOption,
    Shutdown,
    Socket,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVERY = ALL - {Extension.SHARED_RINGS}
INPROGRESS = -errno.EINPROGRESS


@pytest.fixture
def guest(serving: Serving) -> Iterator[Front]:
    with front(serving, EVERY) as made:
        yield made


def accepted(server: socket.socket) -> socket.socket:
    peer, _ = server.accept()
    peer.settimeout(10)
    return peer


def drained(peer: socket.socket) -> bytes:
    return b"".join(iter(lambda: peer.recv(1 << 16), b""))


def option(guest: Front, id: int, level: int, name: int, length: int = 4) -> bytes:
    response = guest.command(GetOption(id, level, name, length))
    assert response.ret == 0, response
    return response.value


def test_data_events_are_asked_for(guest: Front, server: socket.socket) -> None:
    _, stream, _ = guest.connect(server.getsockname())
    sent = os.urandom(300_000)
    with accepted(server) as peer:
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


# --- shutdown


def test_half_close_towards_the_peer(guest: Front, server: socket.socket) -> None:
    id, stream, _ = guest.connect(server.getsockname())
    stream.send(b"question")
    assert guest.ret(Shutdown(id, 1)) == 0
    with accepted(server) as peer:
        assert drained(peer) == b"question"
        peer.sendall(b"answer")
    assert stream.recv_all() == b"answer"


def test_half_close_from_the_peer_leaves_out_usable(guest: Front, server: socket.socket) -> None:
    _, stream, _ = guest.connect(server.getsockname())
    with accepted(server) as peer:
        peer.shutdown(socket.SHUT_WR)
        assert stream.recv() == b""
        assert (stream.ring.in_error, stream.ring.out_error) == (-errno.ENOTCONN, 0)
        stream.send(b"still heard")
        assert peer.recv(20) == b"still heard"


def test_shutdown_of_what_is_not_connected(guest: Front) -> None:
    assert guest.ret(Shutdown(guest.socket(), 1)) == -errno.ENOTCONN
    assert guest.ret(Shutdown(guest.listener(), 1)) == -errno.ENOTCONN
    assert guest.ret(Shutdown(guest.socket(), 3)) == -errno.EINVAL


# --- names


def test_names_of_both_ends(guest: Front, server: socket.socket) -> None:
    id, _, response = guest.connect(server.getsockname())
    with accepted(server) as peer:
        own = sockaddr(*peer.getpeername())
        assert response.address == own
        assert guest.command(GetName(id, 0)).address == own
        assert guest.command(GetName(id, 1)).address == sockaddr(*server.getsockname())
    assert guest.ret(GetName(id, 2)) == -errno.EINVAL
    assert guest.ret(GetName(guest.socket(), 1)) == -errno.ENOTCONN


def test_bind_tells_the_port_and_accept_the_peer(guest: Front) -> None:
    id = guest.socket()
    bound = guest.command(Bind(id, sockaddr("127.0.0.1", 0)))
    port = Endpoint.from_sockaddr(bound.address).port
    assert port
    assert guest.ret(Listen(id, 1)) == 0
    cookie, new, _ = guest.accept(id)
    with socket.create_connection(("127.0.0.1", port), 5) as peer:
        assert guest.result(cookie).address == sockaddr(*peer.getsockname())
        assert guest.command(GetName(new, 1)).address == sockaddr(*peer.getsockname())


# --- options


def test_options_set_early_apply(guest: Front, server: socket.socket) -> None:
    id, stream = guest.socket(), guest.stream()
    on = struct.pack("i", 1)
    for level, name in ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), (6, socket.TCP_NODELAY)):
        assert option(guest, id, level, name) == bytes(4)
        assert guest.ret(SetOption(id, level, name, on)) == 0
    request = Connect(id, sockaddr(*server.getsockname()), 0, stream.ref, stream.port)
    assert guest.ret(request) == 0
    assert option(guest, id, 6, socket.TCP_NODELAY) == on
    assert option(guest, id, 1, socket.SO_KEEPALIVE) == on


def test_options_that_are_not_listed(guest: Front) -> None:
    id = guest.socket()
    for level, name in ((1, 25), (1, 36), (1, 26), (6, 31), (0, 4), (0, 15), (99, 1)):
        assert guest.ret(SetOption(id, level, name, bytes(4))) == -errno.ENOPROTOOPT
        assert guest.ret(GetOption(id, level, name, 4)) == -errno.ENOPROTOOPT
    assert guest.ret(SetOption(id, 1, 3, bytes(4))) == -errno.ENOPROTOOPT
    assert option(guest, id, 1, 3) == struct.pack("i", socket.SOCK_STREAM)
    assert guest.ret(SetOption(id, 1, socket.SO_KEEPALIVE, b"")) == -errno.EINVAL


INLINE = (socket.SOL_SOCKET, socket.SO_OOBINLINE)


def test_how_urgent_bytes_are_read_is_the_frontends_affair(
    guest: Front, server: socket.socket
) -> None:
    """The mover needs SO_OOBINLINE for itself: it is no option of a stream, in whatever state."""
    fresh, (connected, _, _) = guest.socket(), guest.connect(server.getsockname())
    port = free_port()
    listener = guest.listener(port=port)
    cookie, accepted, _ = guest.accept(listener)
    with socket.create_connection(("127.0.0.1", port), 5):
        assert guest.result(cookie).ret == 0
        for id in (fresh, connected, listener, accepted):
            for value in (bytes(4), struct.pack("i", 1)):
                assert guest.ret(SetOption(id, *INLINE, value)) == -errno.ENOPROTOOPT
            assert guest.ret(GetOption(id, *INLINE, 4)) == -errno.ENOPROTOOPT
    datagrams = guest.socket(kind=socket.SOCK_DGRAM)
    assert guest.ret(SetOption(datagrams, *INLINE, struct.pack("i", 1))) == 0
    assert option(guest, datagrams, *INLINE) == struct.pack("i", 1)


def test_without_urgent_marks_it_is_an_option_as_others(
    serving: Serving, server: socket.socket
) -> None:
    """An urgent byte is one of the others then, in its place; without the option it is lost."""
    with front(serving, EVERY - {Extension.URGENT}) as guest:
        for on in (0, 1):
            id, stream, _ = guest.connect(server.getsockname())
            assert guest.ret(SetOption(id, *INLINE, struct.pack("i", on))) == 0
            assert option(guest, id, *INLINE) == struct.pack("i", on)
            with accepted(server) as peer:
                peer.send(b"ab!", socket.MSG_OOB)
                peer.send(b"cd")
                peer.shutdown(socket.SHUT_WR)
                assert stream.recv_all() == (b"ab!cd" if on else b"abcd")


def test_a_long_option_comes_in_a_page(guest: Front) -> None:
    id, pages = guest.socket(), guest.session.allocate(1)
    response = guest.command(GetOption(id, 6, socket.TCP_INFO, 4096, pages.refs[0]))
    assert response.ret == 0
    assert response.length > 100
    assert pages.memory[0] == 7  # TCP_CLOSE
    assert guest.ret(GetOption(id, 6, socket.TCP_INFO, 4096, 4_000_000)) == -errno.EINVAL
    assert len(option(guest, id, 6, socket.TCP_INFO, 4096)) == 36


def test_linger_of_no_time_resets(guest: Front, server: socket.socket) -> None:
    id, stream, _ = guest.connect(server.getsockname())
    linger = struct.pack("ii", 1, 0)
    assert option(guest, id, 1, socket.SO_LINGER, 8) == bytes(8)
    assert guest.ret(SetOption(id, 1, socket.SO_LINGER, linger)) == 0
    assert option(guest, id, 1, socket.SO_LINGER, 8) == linger
    with accepted(server) as peer:
        assert guest.ret(Release(id)) == 0
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
    assert stream.ring.in_error == 0


def test_reuseport_is_shared_within_a_guest_only(serving: Serving, guest: Front) -> None:
    address, on = sockaddr("127.0.0.1", free_port()), struct.pack("i", 1)

    def listens(front: Front) -> int:
        id = front.socket()
        assert front.ret(SetOption(id, 1, socket.SO_REUSEPORT, on)) == 0
        return front.ret(Bind(id, address)) or front.ret(Listen(id, 1))

    assert listens(guest) == 0
    assert listens(guest) == 0
    with front(serving, EVERY) as other:
        assert listens(other) == -errno.EADDRINUSE


# --- IPv6


def test_ipv6(guest: Front) -> None:
    try:
        made = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this host has no IPv6")
    with made as server:
        _, stream, response = guest.connect(server.getsockname())
        assert response.ret == 0
        with accepted(server) as peer:
            assert response.address == sockaddr(*peer.getpeername()[:2])
            stream.send(b"six")
            assert peer.recv(9) == b"six"


# --- asynchronous connect


def begun(guest: Front, address: bytes) -> tuple[int, Stream, int]:
    id, stream = guest.socket(), guest.stream()
    ret = guest.ret(Connect(id, address, 1, stream.ref, stream.port))
    return id, stream, ret


def test_an_asynchronous_connect_that_succeeds(guest: Front, server: socket.socket) -> None:
    id, stream, ret = begun(guest, sockaddr(*server.getsockname()))
    assert ret in (0, INPROGRESS)
    if ret:
        until(lambda: stream.ring.status == indexes.STATUS_CONNECTED)
    with accepted(server) as peer:
        stream.send(b"x")
        assert peer.recv(2) == b"x"
    assert guest.ret(Connect(id, sockaddr(*server.getsockname()), 1, 1, 1)) == -errno.EISCONN


def test_an_asynchronous_connect_that_waits(guest: Front) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        address = sockaddr(*full.getsockname())
        id, stream, ret = begun(guest, address)
        assert ret == INPROGRESS
        assert stream.ring.status == indexes.STATUS_CONNECTING
        assert guest.ret(Connect(id, address, 1, stream.ref, stream.port)) == -errno.EALREADY
        stream.send(b"early")
        full.close()  # what waits is refused
        until(lambda: stream.ring.in_error)
        assert stream.ring.in_error == stream.ring.out_error != 0
        error = -stream.ring.in_error
        assert option(guest, id, 1, socket.SO_ERROR) == struct.pack("i", error)
        assert option(guest, id, 1, socket.SO_ERROR) == bytes(4)
        for filler in fillers:
            filler.close()


# --- close


def test_close_delivers_in_the_background(guest: Front, server: socket.socket) -> None:
    id, stream, _ = guest.connect(server.getsockname())
    sent = os.urandom(stream.ring.size)
    stream.send(sent)
    assert guest.ret(Close(id)) == 0
    with accepted(server) as peer:
        assert drained(peer) == sent
    assert guest.ret(Close(id)) == -errno.EBADF


def test_close_with_a_reset(guest: Front, server: socket.socket) -> None:
    id, _, _ = guest.connect(server.getsockname())
    with accepted(server) as peer:
        assert guest.ret(Close(id, 1)) == 0
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


# --- large rings


@pytest.mark.parametrize("order", range(10, 14))
def test_a_large_ring(guest: Front, server: socket.socket, order: int) -> None:
    id = guest.socket()
    tables = (1 << order) // 1024  # pages of references
    pages = guest.session.allocate(1 + tables + (1 << order))
    event = guest.session.event()
    data_at = requests.PAGE * (1 + tables)
    page, refs, data = (
        pages.memory[: requests.PAGE],
        pages.memory[requests.PAGE : data_at],
        pages.memory[data_at:],
    )
    ring = _core.DataRing(page, data, "front", True, True)
    refs[:] = indexes.encode_refs(tuple(pages.refs[1 + tables :]))
    indexes.write_layout(page, indexes.Layout(order, pages.refs[1 : 1 + tables]))
    request = Connect(id, sockaddr(*server.getsockname()), 0, pages.refs[0], event.port)
    assert guest.ret(request) == 0
    sent = os.urandom(ring.size)
    count, _ = ring.write(sent)
    assert count == len(sent) == 1 << (order + 11)
    event.notify()
    with accepted(server) as peer:
        assert guest.ret(Release(id)) == 0  # at once: nobody has read anything
        data[:] = bytes(len(data))  # the pages are ours again
        assert drained(peer) == sent
    ring.close()
    event.close()


def test_v1_has_no_large_rings(serving: Serving, server: socket.socket) -> None:
    with front(serving, EVERY - {Extension.LARGE_RINGS}) as guest:
        id, stream = guest.socket(), guest.stream()
        stream.page[128:132] = struct.pack("<I", 10)
        request = Connect(id, sockaddr(*server.getsockname()), 0, stream.ref, stream.port)
        assert guest.ret(request) == -errno.EINVAL


# --- unix


def unix_connect(guest: Front, path: bytes, flags: int = 0) -> tuple[int, Stream, int]:
    id = guest.new_id()
    assert guest.ret(Socket(id, socket.AF_UNIX, socket.SOCK_STREAM, 0)) == 0
    stream, page = guest.stream(), guest.session.allocate(1)
    raw = struct.pack("<H", socket.AF_UNIX) + path
    page.memory[: len(raw)] = raw
    where = requests.PageAddress(socket.AF_UNIX, page.refs[0], len(raw))
    return id, stream, guest.ret(Connect(id, b"", flags, stream.ref, stream.port, where))


def test_a_unix_socket_that_a_rule_names(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with (
        socket.socket(socket.AF_UNIX) as server,
        Serving(allow=["any", f"unix:{path}"]) as serving,
        front(serving, EVERY) as guest,
    ):
        server.bind(path)
        server.listen()
        server.settimeout(10)
        id, stream, ret = unix_connect(guest, path.encode() + b"\0")
        assert ret == 0
        with accepted(server) as peer:
            stream.send(b"hello")
            assert peer.recv(9) == b"hello"
            peer.sendall(b"back")
            assert stream.recv_exactly(4) == b"back"
        assert guest.command(GetName(id, 1)).address == b""
        assert unix_connect(guest, path.encode() + b"x")[2] == -errno.EACCES
        assert unix_connect(guest, f"{tmp_path}/./s".encode())[2] == -errno.ENOENT
        assert unix_connect(guest, b"\0abstract")[2] == -errno.ENOENT
        assert unix_connect(guest, b"")[2] == -errno.EINVAL
        assert guest.ret(Bind(id, sockaddr("127.0.0.1", 0))) == -errno.EOPNOTSUPP
        assert guest.ret(Listen(id, 1)) == -errno.EINVAL
        targets = [r.target for r in serving.records]
        assert targets == [f"unix:{path}", f"unix:{path}x"]


def test_a_unix_listener_whose_queue_is_full_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with (
        socket.socket(socket.AF_UNIX) as server,
        Serving(allow=["any", f"unix:{path}"]) as serving,
        front(serving, EVERY) as guest,
        socket.socket(socket.AF_UNIX) as first,
    ):
        server.bind(path)
        server.listen(0)
        first.connect(path)
        id, stream, ret = unix_connect(guest, path.encode(), 1)
        assert ret == INPROGRESS
        assert guest.ret(Release(guest.socket())) == 0
        for _ in range(2):
            server.accept()[0].close()
        until(lambda: stream.ring.status == 1 or stream.ring.in_error)
        assert stream.ring.status == 1
        assert guest.ret(Release(id)) == 0


def test_a_host_without_rules_about_paths_has_none(guest: Front, tmp_path: Path) -> None:
    assert unix_connect(guest, str(tmp_path / "s").encode())[2] == -errno.EACCES


# --- what is not agreed


@pytest.mark.parametrize("missing", sorted(EVERY - {Extension.DATAGRAMS}))
def test_without_its_request_an_extension_does_not_exist(
    serving: Serving, missing: Extension
) -> None:
    with front(serving, EVERY - {missing}) as guest:
        id = guest.socket()
        probes = {
            Extension.SHUTDOWN: Shutdown(id, 1),
            Extension.NAMES: GetName(id, 0),
            Extension.OPTIONS: SetOption(id, 1, 2, bytes(4)),
            Extension.CLOSE: Close(id),
            Extension.IPV6: Socket(90, 10, 1, 0),
            Extension.UNIX: Socket(90, 1, 1, 0),
            Extension.ICMP_ECHO: Socket(90, 2, 2, 1),
            Extension.RESOLVE: Socket(90, 0, 2, 53),
        }
        if missing in probes:
            assert guest.ret(probes[missing]) == ENOTSUP
        response = guest.command(Bind(id, sockaddr("127.0.0.1", 0)))
        assert (response.address == b"") == (missing == Extension.NAMES)


def test_the_endpoints_of_records_are_those_asked_for(serving: Serving, guest: Front) -> None:
    id, _, _ = guest.connect(("127.0.0.1", free_port()))
    mapped = replace(Endpoint(ip_address("::ffff:127.0.0.1"), free_port()))
    six, stream = guest.socket(socket.AF_INET6), guest.stream()
    guest.command(Connect(six, mapped.sockaddr(), 0, stream.ref, stream.port))
    record = [r for r in serving.records if r.verb == "connect"][-1]
    assert (record.target, record.rule) == (str(mapped), "loopback")
    del id


def test_accept_of_a_listener_that_lingers_nothing_resets(guest: Front) -> None:
    port = free_port()
    listener = guest.listener(port=port)
    assert guest.ret(SetOption(listener, 1, socket.SO_LINGER, struct.pack("ii", 1, 0))) == 0
    stream, new = guest.stream(), guest.new_id()
    cookie = guest.submit(Accept(listener, new, stream.ref, stream.port))
    with socket.create_connection(("127.0.0.1", port), 5) as peer:
        assert guest.result(cookie).ret == 0
        assert guest.ret(Release(new)) == 0
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
