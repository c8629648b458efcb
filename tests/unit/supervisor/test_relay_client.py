"""Connections that a guest makes over the relay, in namespaces of their own."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import socket
import struct
import threading
import time

import pytest
from relaykit import FAR4, FAR6, OUT, Ground, error_of, events, hard_close, read, until

import nskit
from xensock.calls.address import Endpoint
from xensock.supervisor import relay_client, relay_wire
from xensock.supervisor.relay_wire import SO_DETACH_FILTER, SO_MARK, attach_filter, cookie_of

pytestmark = pytest.mark.skipif(bool(nskit.missing()), reason=nskit.missing())

DROP_ALL = struct.pack("=HBBI", 6, 0, 0, 0)
TCP_REPAIR = 19


@pytest.fixture(scope="module")
def ground():
    made = Ground()
    yield made
    made.close()


@pytest.fixture
def slow(ground):
    """A far server that is silent until detach() is called; then it answers the next SYN."""
    with ground.server() as server:
        attach_filter(server, DROP_ALL)
        yield server


def answer(server: socket.socket) -> None:
    server.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)


@pytest.mark.parametrize("host", [FAR4, FAR6])
def test_names_are_the_real_ones(ground, host):
    with ground.pair(host) as (guest, far):
        assert guest.getpeername()[:2] == far.getsockname()[:2]
        assert guest.getsockname()[:2] == far.getpeername()[:2]
        assert guest.getsockopt(socket.SOL_SOCKET, SO_MARK) == 0


@pytest.mark.parametrize("host", [FAR4, FAR6])
def test_16_mib_both_ways(ground, host):
    size = 16 << 20
    data = os.urandom(1 << 20) * 16
    want = hashlib.sha256(data).digest()
    got = {}

    def sink(name: str, sock: socket.socket) -> None:
        digest, total = hashlib.sha256(), 0
        while chunk := sock.recv(1 << 18):
            digest.update(chunk)
            total += len(chunk)
        got[name] = (total, digest.digest())

    def write(sock: socket.socket) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    with ground.pair(host) as (guest, far):
        threads = [
            threading.Thread(target=sink, args=(n, s)) for n, s in (("g", guest), ("f", far))
        ]
        threads += [threading.Thread(target=write, args=(s,)) for s in (guest, far)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert got == {"g": (size, want), "f": (size, want)}


def test_half_close(ground):
    with ground.pair() as (guest, far):
        guest.sendall(b"question")
        guest.shutdown(socket.SHUT_WR)
        assert read(far, 99) == b"question"
        far.sendall(b"answer")
        far.close()
        assert read(guest, 99) == b"answer"


@pytest.mark.parametrize("by_guest", [True, False])
def test_a_reset_is_a_reset(ground, by_guest):
    with ground.pair() as (guest, far):
        one, other = (guest, far) if by_guest else (far, guest)
        one.sendall(b"last words")
        hard_close(one)
        assert read(other, 10) == b"last words"
        with pytest.raises(ConnectionResetError):
            other.recv(1)


def test_refused_blocking(ground):
    server = ground.server()
    name = Endpoint.from_python(server.getsockname())
    server.close()
    with ground.client() as guest:
        assert ground.connect_to(guest, name) == errno.ECONNREFUSED


@pytest.mark.parametrize("host", [FAR4, FAR6])
def test_refused_non_blocking(ground, host):
    server = ground.server(host)
    name = Endpoint.from_python(server.getsockname())
    server.close()
    with ground.client(name.family, blocking=False) as guest:
        assert ground.connect_to(guest, name) == errno.EINPROGRESS
        assert events(guest, 5000) & (select.POLLERR | select.POLLHUP)
        assert error_of(guest) == errno.ECONNREFUSED


def test_non_blocking_says_in_progress_and_connects(ground):
    with ground.server() as server, ground.client(blocking=False) as guest:
        assert ground.connect(guest, server) == errno.EINPROGRESS
        assert events(guest, 5000) == OUT
        assert error_of(guest) == 0
        far, _ = server.accept()
        far.close()


@pytest.mark.parametrize("blocking", [True, False])
def test_a_slow_dial_shows_nothing_until_it_is_up(ground, slow, blocking):
    with ground.client(blocking=blocking) as guest:
        assert ground.connect(guest, slow) == errno.EINPROGRESS
        assert events(guest, 200) == 0
        assert error_of(guest) == 0
        if not blocking:
            assert guest.connect_ex(slow.getsockname()) == errno.EALREADY
        answer(slow)
        assert events(guest, 5000) == OUT
        assert error_of(guest) == 0
        assert guest.getpeername() == slow.getsockname()
        assert os.get_blocking(guest.fileno()) is blocking
        far, _ = slow.accept()
        with far:
            guest.send(b"ping")
            assert far.recv(9) == b"ping"
            far.send(b"pong")
            until(lambda: bool(events(guest, 100) & select.POLLIN))
            assert guest.recv(9) == b"pong"


def test_a_slow_dial_delays_no_other(ground, slow):
    with ground.client(blocking=False) as stuck:
        assert ground.connect(stuck, slow) == errno.EINPROGRESS
        start = time.monotonic()
        with ground.pair() as (guest, far):
            guest.send(b"x")
            assert far.recv(1) == b"x"
        assert time.monotonic() - start < 0.5


def test_epoll_before_and_after(ground, slow):
    with ground.client(blocking=False) as guest, select.epoll() as epoll:
        epoll.register(guest, select.EPOLLOUT | select.EPOLLET)
        epoll.poll(0)  # an unconnected socket is ready to say so
        assert ground.connect(guest, slow) == errno.EINPROGRESS
        assert epoll.poll(0.1) == []
        answer(slow)
        assert epoll.poll(5) == [(guest.fileno(), select.EPOLLOUT)]
        slow.accept()[0].close()


@pytest.mark.parametrize(
    ("host", "blocking"), [("192.0.2.9", True), ("192.0.2.9", False), ("2001:db8::9", False)]
)
def test_unreachable_later(ground, host, blocking):
    """No neighbour answers, which the host's kernel notices after a while."""
    name = Endpoint.from_python((host, 80) if ":" not in host else (host, 80, 0, 0))
    with ground.client(name.family, blocking=blocking) as guest:
        assert ground.connect_to(guest, name) == errno.EINPROGRESS
        assert events(guest, 8000) & select.POLLERR
        assert error_of(guest) == errno.EHOSTUNREACH


def test_unreachable_at_once(ground):
    for blocking in (True, False):
        with ground.client(blocking=blocking) as guest:
            name = Endpoint.from_python(("198.51.100.7", 80))
            assert ground.connect_to(guest, name) == errno.EHOSTUNREACH
            assert (
                ground.connect_to(guest, Endpoint.from_python(("203.0.113.9", 80)))
                == errno.ENETUNREACH
            )


def test_a_guest_that_gives_up_ends_the_dial(ground, slow):
    def dialling() -> bool:
        return bool(ground.relay._client._holds)

    guest = ground.client(blocking=False)
    assert ground.connect(guest, slow) == errno.EINPROGRESS
    assert dialling()
    guest.close()
    until(lambda: not dialling(), 3)
    answer(slow)
    slow.settimeout(1.5)
    with pytest.raises(TimeoutError):
        slow.accept()


class Unseen:
    """A kernel without the module tcp_diag: ENOENT, whatever one looks up, as for what is not there."""

    looks = 0

    def look(self, *_: object) -> None:
        self.looks += 1


@pytest.fixture
def unseen(monkeypatch):
    made = Unseen()
    monkeypatch.setattr(relay_wire.Wire, "_look", staticmethod(made.look))
    monkeypatch.setattr(relay_client, "_CHECK", 0.01)
    return made


@pytest.fixture
def unseeing(unseen):
    made = Ground()
    yield made
    made.close()


def test_a_guest_that_cannot_be_looked_up_is_not_given_up(unseen, unseeing):
    checked = relay_client.Client._check
    checks = []
    with unseeing.server() as server, unseeing.client(blocking=False) as guest:
        attach_filter(server, DROP_ALL)
        client = unseeing.relay._client
        client._check = lambda: (checks.append(1), checked(client))
        assert unseeing.connect(guest, server) == errno.EINPROGRESS
        until(lambda: len(checks) > 5)
        assert unseen.looks == 1  # of a socket that is there
        answer(server)
        assert events(guest, 5000) == OUT
        far, _ = server.accept()
        with far:
            guest.send(b"ping")
            assert far.recv(9) == b"ping"
        until(lambda: not client._holds)


def test_one_that_gave_up_unseen_holds_nothing_for_ever(unseeing):
    with unseeing.server() as server, unseeing.client(blocking=False) as guest:
        attach_filter(server, DROP_ALL)
        assert unseeing.connect(guest, server) == errno.EINPROGRESS
        guest.close()
        answer(server)
        far, _ = server.accept()
        with far, pytest.raises(ConnectionResetError):
            far.recv(1)
        assert not unseeing.relay._client._holds


def test_one_that_gave_up_before_the_refusal_holds_nothing_for_ever(unseeing):
    with unseeing.client(blocking=False) as guest:
        with unseeing.server() as server:
            attach_filter(server, DROP_ALL)
            assert unseeing.connect(guest, server) == errno.EINPROGRESS
            guest.close()
        until(lambda: not unseeing.relay._client._holds)  # refused once the SYN is sent again


def test_one_that_is_refused_is_told_unseen(unseeing):
    with unseeing.client(blocking=False) as guest:
        dest = Endpoint.from_python(("192.0.2.9", 80))
        assert unseeing.connect_to(guest, dest) == errno.EINPROGRESS
        until(lambda: bool(events(guest, 100)))
        assert error_of(guest) == errno.EHOSTUNREACH
        until(lambda: not unseeing.relay._client._holds)  # the guest may be told first


def test_200_at_once(ground):
    with ground.server() as server:
        guests = [ground.client(blocking=False) for _ in range(200)]
        for guest in guests:
            assert ground.connect(guest, server) == errno.EINPROGRESS
        fars = [server.accept()[0] for _ in guests]
        for i, guest in enumerate(guests):
            assert events(guest, 5000) == OUT
            guest.send(struct.pack("i", i))
        said = {struct.unpack("i", read(far, 4))[0] for far in fars}
        assert said == set(range(200))
        for sock in (*guests, *fars):
            sock.close()


def test_200_held_at_once(ground, slow):
    guests = [ground.client(blocking=False) for _ in range(200)]
    for guest in guests:
        assert ground.connect(guest, slow) == errno.EINPROGRESS
    answer(slow)
    fars = [slow.accept()[0] for _ in guests]
    for guest in guests:
        assert events(guest, 5000) == OUT
        assert error_of(guest) == 0
    for sock in (*guests, *fars):
        sock.close()


def test_a_mapped_address(ground):
    with ground.server() as server, ground.client(socket.AF_INET6) as guest:
        name = Endpoint.from_python((f"::ffff:{FAR4}", server.getsockname()[1], 0, 0))
        assert ground.connect_to(guest, name) == 0
        assert guest.getpeername()[:2] == (f"::ffff:{FAR4}", server.getsockname()[1])
        far, _ = server.accept()
        with far:
            guest.send(b"x")
            assert far.recv(1) == b"x"


def test_dial_elsewhere(ground):
    with ground.server() as server, ground.client() as guest:
        seen = Endpoint.from_python(("203.0.113.80", 80))
        assert ground.connect_to(guest, seen, dial=Endpoint.from_python(server.getsockname())) == 0
        assert guest.getpeername() == ("203.0.113.80", 80)
        server.accept()[0].close()


@pytest.mark.parametrize("host", [FAR4, FAR6])
def test_the_guest_listens_on_that_port_itself(ground, host):
    with (
        ground.server(host) as server,
        ground.guest.socket(server.family, socket.SOCK_STREAM) as own,
    ):
        own.bind(("::" if host == FAR6 else "0.0.0.0", server.getsockname()[1]))
        own.listen()
        with ground.client(server.family) as guest:
            assert ground.connect(guest, server) == 0
            far, _ = server.accept()
            with far:
                guest.sendall(b"to the far side")
                assert far.recv(99) == b"to the far side"
                far.sendall(b"back")
                assert guest.recv(99) == b"back"
                far.close()
                assert guest.recv(1) == b""
        own.settimeout(0)
        with pytest.raises(BlockingIOError):
            own.accept()


def test_release_port(ground):
    with ground.server() as server:
        port = server.getsockname()[1]
        with ground.client() as guest:
            assert ground.connect(guest, server) == 0
            server.accept()[0].close()
    with ground.guest.socket(socket.AF_INET, socket.SOCK_STREAM) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            own.bind(("0.0.0.0", port))
        ground.relay.release_port(port)
        own.bind(("0.0.0.0", port))


def test_the_hosts_loopback_leaves_the_guests_alone(ground):
    """A listener of ours there is gone as soon as it has served, so that nobody takes it for the guest's."""
    with ground.server("127.0.0.1") as server:
        name = Endpoint.from_python(server.getsockname())
        with ground.client() as guest, ground.client() as second:
            for sock in (guest, second):
                assert ground.connect_to(sock, name) == 0
                server.accept()[0].close()
                with ground.client() as probe, pytest.raises(ConnectionRefusedError):
                    probe.connect(server.getsockname())


def test_stands_for(ground, slow):
    with ground.client(blocking=False) as guest:
        assert ground.connect(guest, slow) == errno.EINPROGRESS
        (listener,) = (h.listener for h in ground.relay._client._holds.values())
        assert ground.relay.stands_for(cookie_of(listener.sock))
        assert not ground.relay.stands_for(cookie_of(guest))


def test_stands_for_one_that_was_just_closed(ground):
    """Who finds a listener on loopback asks whose it is a moment later."""
    client, cookies = ground.relay._client, []
    with ground.server("127.0.0.1") as server, ground.client() as guest:
        target = Endpoint.from_python(server.getsockname())
        with client._lock:  # so that it is not closed before it was seen
            cookies.append(client._listener(target).cookie)
        assert ground.connect(guest, server) == 0
        far, _ = server.accept()
        far.close()
        until(lambda: target not in client._listeners)
    assert ground.relay.stands_for(cookies[0])


def test_a_connected_socket_is_told_so(ground):
    with ground.pair() as (guest, _), guest.dup() as copy:
        name = Endpoint.from_python(guest.getpeername())
        assert ground.relay.connect(copy, name) == errno.EISCONN


@pytest.fixture
def far_sockets(ground):
    """Copies of the sockets by which the relay dials."""
    client, copies = ground.relay._client, []

    def far_socket(family: int, kind: int, protocol: int) -> socket.socket:
        made = ground.host.socket(family, kind, protocol)
        copies.append(made.dup())
        return made

    client._far, before = far_socket, client._far
    yield copies
    client._far = before
    for copy in copies:
        copy.close()


def test_options_go_along(ground, slow, far_sockets):
    options = (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000),
        (socket.IPPROTO_IP, socket.IP_TOS, 0x10),
        (socket.SOL_SOCKET, socket.SO_SNDBUF, 65536),
    )
    with ground.client(blocking=False) as guest:
        for option in options:
            guest.setsockopt(*option)
        assert ground.connect(guest, slow) == errno.EINPROGRESS
        for level, name, _ in options:
            assert far_sockets[0].getsockopt(level, name) == guest.getsockopt(level, name)


@pytest.mark.parametrize("host", [FAR4, FAR6])
@pytest.mark.parametrize("size", [700, 1000, 1400])
def test_segments_are_as_long_as_the_far_sides(ground, far_sockets, host, size):
    with ground.server(host) as server, ground.client(server.family) as guest:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, size)
        assert ground.connect(guest, server) == 0
        (far,) = far_sockets
        wanted = far.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
        assert wanted <= size
        assert guest.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) == wanted


@pytest.mark.parametrize("host", [FAR4, FAR6])
def test_segments_on_loopback_are_loopbacks(ground, host):
    """They begin as half the window of a SYN, which must not become the guest's for good."""

    def size_after_many(near: socket.socket, far: socket.socket) -> int:
        for _ in range(64):
            near.sendall(bytes(1 << 17))
            assert len(read(far, 1 << 17)) == 1 << 17
        return near.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)

    with (
        ground.server(host) as server,
        ground.host.socket(server.family, socket.SOCK_STREAM) as near,
    ):
        near.connect(server.getsockname())
        far, _ = server.accept()
        with far:
            natively = size_after_many(near, far)
    assert natively > 32767
    with ground.pair(host) as (guest, far):
        assert size_after_many(guest, far) == natively


def test_nothing_is_paced_within_the_machine(ground, monkeypatch):
    client, made = ground.relay._client, []
    make = client._make

    def recorded(*kind: int) -> socket.socket:
        sock = make(*kind)
        made.append(sock.dup())
        return sock

    monkeypatch.setattr(client, "_make", recorded)
    with ground.pair():
        name = (socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        listeners = [
            each
            for each in made
            if each.type == socket.SOCK_STREAM
            and each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        ]
        assert [each.getsockopt(*name).rstrip(b"\0") for each in listeners] == [b"reno"]
    for each in made:
        each.close()


def test_the_end_is_reported(ground):
    told = []
    with ground.server() as server, ground.client() as guest:
        assert ground.connect(guest, server, ended=lambda *how: told.append(how)) == 0
        far, _ = server.accept()
        with far:
            guest.sendall(b"abc")
            guest.shutdown(socket.SHUT_WR)
            assert read(far, 9) == b"abc"
            far.sendall(b"defgh")
        assert read(guest, 9) == b"defgh"
        until(lambda: bool(told))
    assert told == [(3, 5, 0)]


def test_time_out(ground, slow):
    """The guest's own timer says so, after as many SYNs as it chose."""
    with ground.client(blocking=False) as guest:
        guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        assert ground.connect(guest, slow) == errno.EINPROGRESS
        assert events(guest, 10000)
        assert error_of(guest) == errno.ETIMEDOUT
    until(lambda: not ground.relay._client._holds, 3)
