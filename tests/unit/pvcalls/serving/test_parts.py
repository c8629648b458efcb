"""What the backend's handlers share: limits, ports, addresses, what lingers, who a program is."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest

from xensock.calls.address import Endpoint
from xensock.pvcalls.serving.addresses import endpoint, own_end, own_name, peer_end
from xensock.pvcalls.serving.held import Held, Joined, in_family
from xensock.pvcalls.serving.limits import FDS_PER_SOCKET, Limits, bad_id, refuse
from xensock.pvcalls.serving.moving import Lingering
from xensock.pvcalls.serving.ports import Ports, loopback_of
from xensock.pvcalls.serving.session import program_of

if TYPE_CHECKING:
    from collections.abc import Iterator

INET, INET6, STREAM = socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM


def at(host: str, port: int) -> Endpoint:
    return Endpoint.from_python((host, port))


@pytest.fixture
def made() -> Iterator[list[Held]]:
    """Sockets that `held` made, closed afterwards."""
    kept: list[Held] = []
    yield kept
    for each in kept:
        each.host.close()


def held(made: list[Held], guest: object, kind: int = STREAM, reuse: bool = False) -> Held:
    sock = socket.socket(INET, kind)
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one = Held(cast("Any", guest), len(made), INET, kind, 0, sock)
    made.append(one)
    return one


def bound(held: Held) -> Endpoint:
    return Endpoint.from_python(held.host.getsockname())


def test_limits_leave_descriptors_for_others() -> None:
    assert Limits.for_descriptors(1 << 20).sockets == Limits().sockets
    assert Limits.for_descriptors(1024).sockets * FDS_PER_SOCKET * 4 <= 1024
    assert Limits.for_descriptors(10).sockets == 16


def test_errors_are_the_kernels() -> None:
    assert isinstance(refuse(errno.ECONNREFUSED), ConnectionRefusedError)
    assert bad_id().errno == errno.EBADF


@pytest.mark.parametrize("kind", [STREAM, socket.SOCK_DGRAM])
def test_what_a_guest_shares_it_shares_with_itself(made: list[Held], kind: int) -> None:
    ports, mine, other = Ports(), object(), object()
    first = held(made, mine, kind, reuse=True)
    ports.bind(first, at("127.0.0.1", 0))
    there = bound(first)
    ports.bind(held(made, mine, kind, reuse=True), there)
    foreign = held(made, other, kind, reuse=True)
    with pytest.raises(OSError, match="in use") as error:
        ports.bind(foreign, there)
    assert error.value.errno == errno.EADDRINUSE
    for each in made[:2]:
        ports.forget(each)
        each.host.close()
    ports.bind(foreign, there)


def test_another_address_is_another_port(made: list[Held]) -> None:
    ports = Ports()
    first = held(made, object(), reuse=True)
    ports.bind(first, at("127.0.0.1", 0))
    ports.bind(held(made, object(), reuse=True), at("127.0.0.2", bound(first).port))


def test_the_loopback_of_a_guest_is_its_own(made: list[Held]) -> None:
    ports, mine, other = Ports(), cast("Any", object()), cast("Any", object())
    listener = held(made, mine)
    ports.bind(listener, at("0.0.0.0", 0))
    port = bound(listener).port
    assert not ports.is_own(mine, at("127.0.0.1", port))
    ports.listens(listener, bound(listener))
    assert ports.is_own(mine, at("127.0.0.1", port))
    assert ports.is_own(mine, at("0.0.0.0", port))
    assert not ports.is_own(other, at("127.0.0.1", port))
    assert not ports.is_own(mine, at("192.0.2.1", port))
    assert not ports.is_own(mine, at("::1", port))
    ports.forget(listener)
    assert not ports.is_own(mine, at("127.0.0.1", port))
    assert ports.listener(at("127.0.0.1", port)) is None


def test_where_the_unspecified_address_leads() -> None:
    assert loopback_of(at("0.0.0.0", 5)) == at("127.0.0.1", 5)
    assert loopback_of(at("::", 5)) == at("::1", 5)
    assert loopback_of(at("192.0.2.1", 5)) == at("192.0.2.1", 5)


def test_addresses_of_another_family_or_length_are_refused(made: list[Held]) -> None:
    one = held(made, object())
    assert endpoint(one, at("192.0.2.1", 5).sockaddr()) == at("192.0.2.1", 5)
    for raw, number in (
        (b"", errno.EINVAL),
        (at("192.0.2.1", 5).sockaddr()[:8], errno.EINVAL),
        (at("::1", 5).sockaddr(), errno.EAFNOSUPPORT),
        (b"\1\0/tmp", errno.EAFNOSUPPORT),
    ):
        with pytest.raises(OSError, match=os.strerror(number)):
            endpoint(one, raw)


def test_names_in_the_family_of_a_socket(made: list[Held]) -> None:
    assert in_family(at("192.0.2.1", 5), INET6) == at("::ffff:192.0.2.1", 5)
    assert in_family(at("::ffff:192.0.2.1", 5), INET) == at("192.0.2.1", 5)
    assert in_family(at("::1", 5), INET6) == at("::1", 5)
    one = held(made, object())
    one.joined = Joined(3, at("127.0.0.1", 5), at("127.0.0.1", 6))
    assert (own_end(one), peer_end(one)) == (at("127.0.0.1", 5), at("127.0.0.1", 6))
    assert own_name(one) == at("127.0.0.1", 5).sockaddr()
    assert one.joined.other(INET6) == Joined(
        3, at("::ffff:127.0.0.1", 6), at("::ffff:127.0.0.1", 5)
    )


def test_what_lingers_is_bounded() -> None:
    lingering = Lingering((1000, 2))
    assert lingering.admit((1, 0), 600)
    assert not lingering.admit((2, 0), 500)
    assert lingering.admit((2, 0), 400)
    assert not lingering.admit((3, 0), 0)
    lingering.ended(1)
    lingering.ended(1)
    assert lingering.admit((3, 1), 600)
    assert not lingering.admit((4, 0), 1)


def test_the_name_of_a_frontends_program() -> None:
    with open("/proc/self/comm") as comm:
        assert program_of(os.getpid()) == comm.read().rstrip("\n")
    assert program_of(0) == "?"
