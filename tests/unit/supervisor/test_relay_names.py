"""The names that a guest's own socket has, in namespaces of their own."""

from __future__ import annotations

import errno
import os
import socket

import pytest
from relaykit import FAR4, FAR6, Ground

import nskit
from xensock.calls.address import Endpoint
from xensock.supervisor.relay_names import called_as

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


def test_one_without_a_name_is_given_the_hosts(ground):
    with ground.client() as guest, ground.host.socket(socket.AF_INET, socket.SOCK_STREAM) as outer:
        outer.bind((FAR4, 0))
        with called_as(guest, outer, Endpoint.from_python((FAR4, 9)), ground.guest.socket):
            assert guest.getsockname() == outer.getsockname()
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            guest.bind(("0.0.0.0", 0))
