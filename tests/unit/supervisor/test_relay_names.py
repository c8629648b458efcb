"""The names that a guest's own socket has, in namespaces of their own."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from relaykit import FAR4, FAR6, Ground, error_of, events

import nskit
from xensock.calls.address import Endpoint
from xensock.supervisor.relay_names import (
    IP_BIND_ADDRESS_NO_PORT,
    IP_LOCAL_PORT_RANGE,
    called_as,
)

pytestmark = pytest.mark.skipif(bool(nskit.missing()), reason=nskit.missing())


@pytest.fixture(scope="module")
def ground():
    made = Ground()
    yield made
    made.close()


def any_of(family):
    return "::" if family == socket.AF_INET6 else "0.0.0.0"


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, FAR4), (socket.AF_INET6, FAR6), (socket.AF_INET6, "::ffff:" + FAR4)],
)
def test_a_client_that_chose_its_port_has_the_hosts_address(ground, family, host):
    with ground.server(host.removeprefix("::ffff:")) as server, ground.client(family) as guest:
        guest.bind((any_of(family), 0))
        port = guest.getsockname()[1]
        outer = ground.host.socket(family, socket.SOCK_STREAM)
        outer.bind((any_of(family), port))
        dest = Endpoint.from_python((host, server.getsockname()[1]))
        assert ground.connect_to(guest, dest, far=outer) == 0
        far, (seen, at, *_) = server.accept()
        with far:
            assert guest.getsockname()[:2] == (
                f"::ffff:{seen}" if "ffff" in host else seen,
                port,
            )
            assert at == port


def source_of(ground, host):
    """The address that the guest's network gives to whoever calls this one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ground.guest.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((host, 9))
        return sock.getsockname()[0]


@pytest.mark.parametrize("host", [FAR4, FAR6])
def test_it_lasts_for_that_call(ground, host):
    """The route and the address are gone afterwards, also where the connection fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    before = source_of(ground, host)
    with ground.client(family) as guest, ground.host.socket(family, socket.SOCK_STREAM) as outer:
        guest.bind((any_of(family), 0))
        outer.bind((host, 0))
        elsewhere, third = f"{host}77", f"{host}78"
        dest = Endpoint.from_python((elsewhere, 9))
        with called_as(guest, outer, dest, ground.guest.socket):
            assert source_of(ground, elsewhere) == host
            assert source_of(ground, third) == before
            assert guest.connect_ex((elsewhere, 9)) == errno.ECONNREFUSED
    assert source_of(ground, elsewhere) == before
    if family == socket.AF_INET6:  # to IPv4 every address is local anyway
        no = os.strerror(errno.EADDRNOTAVAIL)
        with ground.client(family) as guest, pytest.raises(OSError, match=no):
            guest.bind((host, 0))


def test_what_the_program_chose_stays(ground):
    with ground.client() as guest, ground.host.socket(socket.AF_INET, socket.SOCK_STREAM) as outer:
        guest.bind(("127.0.0.1", 0))
        name = guest.getsockname()
        with called_as(guest, outer, Endpoint.from_python((FAR4, 9)), ground.guest.socket):
            assert guest.getsockname() == name


@pytest.mark.parametrize("host", [FAR4, FAR6])
def test_one_without_a_name_is_given_the_hosts(ground, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ground.client(family) as guest, ground.host.socket(family, socket.SOCK_STREAM) as outer:
        outer.bind((host, 0))
        nobody = Endpoint.from_python((host, 9))
        with called_as(guest, outer, nobody, ground.guest.socket) as start:
            assert start(nobody.sockaddr(), 0) == errno.ECONNREFUSED
        assert guest.getsockname() == outer.getsockname()


def v6only(sock):
    return sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


@pytest.mark.parametrize("chosen", [0, 1])
def test_ipv6_v6only_is_what_the_program_left_it(ground, chosen):
    """And nothing else of the socket's shows how it got its name, which the far side sees."""
    with ground.server(FAR6) as server, ground.client(socket.AF_INET6) as guest:
        guest.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, chosen)
        assert ground.connect_to(guest, Endpoint.from_python(server.getsockname())) == 0
        far, name = server.accept()
        with far:
            assert guest.getsockname()[:2] == name[:2]
        assert v6only(guest) == chosen
        for option in (IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE):
            assert guest.getsockopt(socket.IPPROTO_IP, option) == 0


def test_a_port_that_the_guest_has_too_is_shared(ground):
    with ground.server(FAR6) as server, ground.client(socket.AF_INET6) as guest:
        outer = ground.host.socket(socket.AF_INET6, socket.SOCK_STREAM)
        outer.bind(("::", 0))
        with ground.client(socket.AF_INET6) as other:
            other.bind(("::1", outer.getsockname()[1]))
            dest = Endpoint.from_python(server.getsockname())
            assert ground.connect_to(guest, dest, far=outer) == 0
            far, name = server.accept()
            with far:
                assert guest.getsockname()[:2] == name[:2]


@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, FAR4), (socket.AF_INET6, FAR6), (socket.AF_INET6, "::ffff:" + FAR4)],
)
def test_after_an_attempt_that_failed_the_next_has_the_next_name(ground, family, host):
    with (
        ground.server(host.removeprefix("::ffff:")) as server,
        ground.client(family, blocking=False) as guest,
    ):
        nowhere, there = (Endpoint.from_python((host, n)) for n in (9, server.getsockname()[1]))
        assert ground.connect_to(guest, nowhere) == errno.EINPROGRESS
        assert events(guest, 10_000)
        assert error_of(guest) == errno.ECONNREFUSED
        assert ground.connect_to(guest, nowhere) == errno.ECONNABORTED  # as natively, once
        assert ground.connect_to(guest, there) in (0, errno.EINPROGRESS)
        far, (seen, port, *_) = server.accept()
        with far:
            name = f"::ffff:{seen}" if "ffff" in host else seen
            assert guest.getsockname()[:2] == (name, port)


def test_a_program_can_bind_after_an_attempt_that_failed(ground):
    with ground.client(blocking=False) as guest:
        assert ground.connect_to(guest, Endpoint.from_python((FAR4, 9))) == errno.EINPROGRESS
        assert events(guest, 10_000)
        guest.bind(("127.0.0.1", 0))
        assert guest.getsockname()[0] == "127.0.0.1"
