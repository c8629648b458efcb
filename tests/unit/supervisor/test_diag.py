"""Which listener would answer: what sock_diag says against what a connection finds."""

from __future__ import annotations

import errno
import itertools
import select
import socket
import threading
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest

from xensock.supervisor.diag import CONNECTED, Diag, cookie, open_host

if TYPE_CHECKING:
    from collections.abc import Iterator


def _ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


HERE4 = IPv4Address("127.0.0.1")
# (address, IPV6_V6ONLY)
PLACES: list[tuple[str, bool]] = [("0.0.0.0", False), ("127.0.0.1", False), ("127.0.0.2", False)]
TARGETS = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
if _ipv6():
    PLACES += [("::", False), ("::", True), ("::1", True), ("::ffff:127.0.0.1", False)]
    TARGETS += ["::1"]


@pytest.fixture
def diag() -> Iterator[Diag]:
    opened = open_host()
    yield opened
    opened.close()


def listen(host: str, only: bool, port: int) -> socket.socket | None:
    """A listener, or None where the kernel lets the others have no such one beside them."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    try:
        sock.bind((host, port))
        sock.listen()
    except OSError as error:
        sock.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return sock


def reached(host: str, port: int, listeners: list[socket.socket]) -> int | None:
    """The cookie of the listener that a connection really reaches."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
        try:
            client.connect((host, port))
        except ConnectionRefusedError:
            return None
        ready, _, _ = select.select(listeners, [], [], 5)
        assert len(ready) == 1
        ready[0].accept()[0].close()
        return cookie(ready[0])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("count", range(4))
def test_the_listener_that_a_connection_reaches(count: int, diag: Diag) -> None:
    compared = 0
    for places in itertools.combinations(PLACES, count):
        port = free_port()
        with ExitStack() as stack:
            listeners = []
            for host, only in places:
                sock = listen(host, only, port)
                if sock is not None:
                    listeners.append(stack.enter_context(sock))
            for target in TARGETS:
                expected = reached(target, port, listeners)
                assert diag.listener(ip_address(target), port) == expected, (places, target)
                compared += 1
    assert compared >= len(TARGETS)


def test_what_does_not_listen_is_not_found(diag: Diag) -> None:
    with socket.socket() as bound, socket.create_server(("127.0.0.1", 0)) as server:
        bound.bind(("127.0.0.1", 0))
        assert diag.listener(HERE4, bound.getsockname()[1]) is None
        with socket.create_connection(server.getsockname()) as client:
            assert diag.listener(HERE4, client.getsockname()[1]) is None
        with socket.socket(type=socket.SOCK_DGRAM) as datagram:
            datagram.bind(("127.0.0.1", 0))
            assert diag.listener(HERE4, datagram.getsockname()[1]) is None
        port = server.getsockname()[1]
        assert diag.listener(HERE4, port) == cookie(server)
        server.close()
        assert diag.listener(HERE4, port) is None


def test_the_edges_of_ports(diag: Diag) -> None:
    for port in range(65535, 65000, -1):
        server = listen("127.0.0.1", False, port)
        if server is not None:
            break
    assert server is not None
    with server:
        assert diag.listener(HERE4, port) == cookie(server)
    assert diag.listener(HERE4, port) is None
    assert diag.listener(HERE4, 0) is None
    assert diag.listener(IPv6Address("2001:db8::1"), port) is None


def test_several_threads_ask_at_once(diag: Diag) -> None:
    wrong: list[int] = []

    def ask(server: socket.socket) -> None:
        port, expected = server.getsockname()[1], cookie(server)
        for _ in range(200):
            found = diag.listener(HERE4, port)
            wrong.extend([port] if found != expected else [])

    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(4)]
        threads = [threading.Thread(target=ask, args=(server,)) for server in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_cookies_are_of_sockets_not_descriptors() -> None:
    with socket.socket() as one, one.dup() as same, socket.socket() as other:
        assert cookie(one) == cookie(same) != cookie(other)


def test_who_holds_a_port(diag: Diag) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = first.getsockname()[1]
        made = {cookie(first): (HERE4, False)}
        stack.enter_context(socket.socket()).bind(("127.0.0.1", 0))  # another port's
        for host in ("::1", "::ffff:127.0.0.2"):
            if _ipv6():
                other = stack.enter_context(socket.socket(socket.AF_INET6))
                other.bind((host, port))
                other.listen()
                made[cookie(other)] = (ip_address(host), host == "::1")
        found = {each.cookie: (each.host, each.v6only) for each in diag.held(port)}
        assert found.keys() == made.keys()
        for key, (host, _) in made.items():
            assert found[key][0] == host
    assert diag.held(port) == []


def test_every_port_and_those_that_are_connected(diag: Diag) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.bind(("127.0.0.1", 0))
        bound = {each.cookie for each in diag.held()}
        assert cookie(server) in bound
        assert (cookie(client) in bound) == diag.shows_bound()
        client.connect(server.getsockname())
        assert cookie(client) not in {each.cookie for each in diag.held()}
        port = client.getsockname()[1]
        assert [each.cookie for each in diag.held(port, CONNECTED)] == [cookie(client)]


def test_a_module_that_is_missing_is_told(diag: Diag) -> None:
    """Not: that there are no sockets. Of a protocol that nobody has the kernel says what it says without udp_diag."""
    with pytest.raises(FileNotFoundError):
        diag.held(protocol=200)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the answers that follow are its own
        (found,) = diag.held(server.getsockname()[1])
        assert found.cookie == cookie(server)
