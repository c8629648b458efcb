"""Connections that a guest accepts over the relay, in namespaces of their own."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from relaykit import FAR4, FAR6, STREAM, Ground, hard_close, until

import nskit
from xensock.supervisor.relay_wire import cookie_of

pytestmark = pytest.mark.skipif(bool(nskit.missing()), reason=nskit.missing())


@pytest.fixture(scope="module")
def ground():
    made = Ground()
    yield made
    made.close()


def guest_server(ground, host="0.0.0.0", port=8080, backlog=512):
    sock = ground.guest.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    sock.listen(backlog)
    sock.settimeout(10)
    return sock


@contextmanager
def published(ground, host=FAR4, guest_port=8080, loopback=None, **more):
    listener = ground.server(host)
    address = listener.getsockname()
    ground.relay.publish(listener, guest_port, loopback, lambda: None, **more)
    yield address
    ground.relay.unpublish(listener)


def client(ground, address):
    sock = ground.host.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, STREAM)
    sock.settimeout(10)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


@pytest.mark.parametrize(("host", "wildcard"), [(FAR4, "0.0.0.0"), (FAR6, "::"), (FAR4, "::")])
def test_accept_shows_the_true_client(ground, host, wildcard):
    with (
        guest_server(ground, wildcard) as own,
        published(ground, host) as address,
        client(ground, address) as far,
    ):
        guest, peer = own.accept()
        mapped = "::ffff:" if host == FAR4 and wildcard == "::" else ""
        with guest:
            assert peer[:2] == (mapped + far.getsockname()[0], far.getsockname()[1])
            assert guest.getpeername() == peer
            assert guest.getsockname()[:2] == (mapped + host, 8080)
            far.sendall(b"ping")
            assert guest.recv(9) == b"ping"
            guest.sendall(b"pong")
            assert far.recv(9) == b"pong"
            guest.close()
            assert far.recv(1) == b""


@pytest.mark.parametrize(("host", "own_host"), [(FAR4, "127.0.0.1"), (FAR6, "::1")])
def test_a_listener_on_the_guests_loopback(ground, host, own_host):
    with (
        guest_server(ground, own_host, 3000) as own,
        published(ground, host, 3000, ip_address(own_host)) as address,
        client(ground, address) as far,
    ):
        guest, peer = own.accept()
        with guest:
            assert peer[:2] == far.getsockname()[:2]
            assert guest.getsockname()[:2] == (own_host, 3000)
            far.sendall(b"x")
            assert guest.recv(1) == b"x"


def test_much_data(ground):
    data = os.urandom(1 << 20) * 16
    with guest_server(ground) as own, published(ground) as address, client(ground, address) as far:
        guest, _ = own.accept()
        with guest:
            got = bytearray()

            def read() -> None:
                while chunk := far.recv(1 << 18):
                    got.extend(chunk)

            thread = threading.Thread(target=read)
            thread.start()
            guest.sendall(data)
            guest.shutdown(socket.SHUT_WR)
            thread.join()
            assert got == data


def test_nobody_listens(ground):
    with published(ground, guest_port=9) as address:
        with pytest.raises(ConnectionResetError), client(ground, address) as far:
            far.recv(1)
        with guest_server(ground, port=9) as own, client(ground, address):
            own.accept()[0].close()  # a guest that listens later is reached


@pytest.mark.parametrize("by_guest", [True, False])
def test_a_reset_is_a_reset(ground, by_guest):
    with guest_server(ground) as own, published(ground) as address, client(ground, address) as far:
        guest, _ = own.accept()
        with guest:
            one, other = (guest, far) if by_guest else (far, guest)
            hard_close(one)
            with pytest.raises(ConnectionResetError):
                other.recv(1)


@pytest.mark.parametrize(("source", "seen"), [("127.0.0.1", 8081), (FAR4, None)])
def test_the_client_has_the_guests_port(ground, source, seen):
    """Where it has the address as well, it cannot keep its port: the guest would connect to itself."""
    with (
        guest_server(ground, port=8081) as own,
        published(ground, guest_port=8081) as address,
        ground.host.socket(socket.AF_INET, STREAM) as far,
    ):
        far.bind((source, 8081))
        far.connect(address)
        guest, peer = own.accept()
        with guest:
            assert peer[0] == source
            assert peer[1] == seen or (seen is None and peer[1] != 8081)
            far.sendall(b"x")
            assert guest.recv(1) == b"x"


def test_a_full_queue_makes_clients_wait(ground):
    with (
        guest_server(ground, port=8082, backlog=0) as own,
        published(ground, guest_port=8082) as address,
    ):
        fars = [client(ground, address) for _ in range(4)]
        for i, far in enumerate(fars):
            far.sendall(bytes([i]))
        said = set()
        for _ in fars:
            guest, _ = own.accept()
            with guest:
                guest.settimeout(10)
                said |= set(guest.recv(1))
        assert said == {0, 1, 2, 3}
        for far in fars:
            far.close()


def test_200_at_once(ground):
    with guest_server(ground) as own, published(ground) as address:
        fars = [client(ground, address) for _ in range(200)]
        guests = [own.accept() for _ in fars]
        assert {peer for _, peer in guests} == {far.getsockname() for far in fars}
        for sock in (*fars, *(guest for guest, _ in guests)):
            sock.close()


def test_unpublish_frees_the_port(ground):
    with published(ground) as address:
        pass
    with ground.host.socket(socket.AF_INET, STREAM) as again:
        again.bind(address)
        with pytest.raises(ConnectionRefusedError):
            client(ground, address)


def test_the_end_is_reported(ground):
    told = []
    with (
        guest_server(ground) as own,
        published(ground, ended=lambda *how: told.append(how)) as address,
    ):
        with client(ground, address) as far:
            guest, _ = own.accept()
            with guest:
                guest.sendall(b"abc")
                assert far.recv(9) == b"abc"
                far.sendall(b"defgh")
                assert guest.recv(9) == b"defgh"
        until(lambda: bool(told))
    assert told == [(3, 5, 0)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_watch(ground, host):
    gone = threading.Event()
    own = guest_server(ground, host, 8083)
    other = guest_server(ground, host, 8084)
    ground.relay.watch(cookie_of(own), gone.set)
    copy = own.dup()
    other.close()
    own.close()
    assert not gone.wait(0.1)  # the copy keeps it open, as a forked child would
    start = time.monotonic()
    copy.close()
    assert gone.wait(5)
    assert time.monotonic() - start < 0.5


def test_watch_what_is_gone_already(ground):
    gone = threading.Event()
    with guest_server(ground, port=8085) as own:
        ground.relay.watch(cookie_of(own), lambda: None)
    with guest_server(ground, port=8085) as own:
        cookie = cookie_of(own)
    until(lambda: cookie in ground.relay._server._destroyed)
    ground.relay.watch(cookie, gone.set)
    assert gone.wait(5)


def test_unwatch(ground):
    gone = threading.Event()
    with guest_server(ground, port=8086) as own, guest_server(ground, port=8087) as other:
        ground.relay.watch(cookie_of(own), gone.set)
        ground.relay.unwatch(cookie_of(own))
        seen = threading.Event()
        ground.relay.watch(cookie_of(other), seen.set)
        own.close()
        other.close()
    assert seen.wait(5)
    assert not gone.is_set()


def heeded(ground, own):
    """What is set when this listener hangs up; no descriptor of it stays here."""
    shut = threading.Event()
    with own.dup() as copy:
        ground.relay.heed(copy, cookie_of(own), shut.set)
    return shut


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_listener_that_is_shut_is_heard_of(ground, host):
    with guest_server(ground, host, 8088) as own, guest_server(ground, host, 8089) as other:
        shut, not_shut = heeded(ground, own), heeded(ground, other)
        own.shutdown(socket.SHUT_RDWR)
        assert shut.wait(5)
        assert not not_shut.is_set()
        own.listen()
        again = heeded(ground, own)
        own.shutdown(socket.SHUT_RD)
        assert again.wait(5)
        other.shutdown(socket.SHUT_WR)  # which is nothing to a listener
        own.listen()
        last = heeded(ground, own)
        own.shutdown(socket.SHUT_RDWR)
        assert last.wait(5)
        assert not not_shut.is_set()


def test_to_heed_a_listener_keeps_it_not_open(ground):
    gone = threading.Event()
    own = guest_server(ground, port=8088)
    ground.relay.watch(cookie_of(own), gone.set)
    shut = heeded(ground, own)
    own.close()
    assert gone.wait(5)
    with guest_server(ground, port=8088) as other:
        seen = heeded(ground, other)
        other.shutdown(socket.SHUT_RDWR)
        assert seen.wait(5)
    assert not shut.is_set()


def test_what_is_withdrawn_is_its_owners_again(ground):
    listener = ground.server()
    with listener, guest_server(ground) as own:
        ground.relay.publish(listener, 8080, None, lambda: None)
        with client(ground, listener.getsockname()), own.accept()[0]:
            pass
        ground.relay.withdraw(listener)
        listener.settimeout(10)
        with client(ground, listener.getsockname()) as sock:
            conn, address = listener.accept()
            conn.close()
            assert address == sock.getsockname()


def test_accepting_fails_for_good(ground):
    gone = threading.Event()
    listener = ground.server()
    ground.relay.publish(listener, 8080, None, gone.set)
    listener.shutdown(socket.SHUT_RDWR)  # no listener any more: accept(2) gives EINVAL
    assert gone.wait(5)
    assert listener.fileno() == -1


def test_first_watch_of_a_listener_that_is_gone():
    made = Ground()
    try:
        gone = threading.Event()
        with guest_server(made) as own:
            cookie = cookie_of(own)
        made.relay.watch(cookie, gone.set)
        assert gone.wait(5)
    finally:
        made.close()


def test_the_guest_listens_on_the_other_family_only(ground):
    """The guest listens on IPv4 only; an IPv6 client is reset."""
    with (
        guest_server(ground, port=8088),
        published(ground, FAR6, 8088) as address,
        pytest.raises(ConnectionResetError),
        client(ground, address) as far,
    ):
        far.recv(1)
