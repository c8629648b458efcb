"""Options that travel with a socket when another takes its place: whatever a guest may set must not be lost."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nskit
from xensock.supervisor import options
from xensock.supervisor.filter import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

SOL, TCP, IP, IPV6 = (
    socket.SOL_SOCKET,
    socket.IPPROTO_TCP,
    socket.IPPROTO_IP,
    socket.IPPROTO_IPV6,
)
FAMILIES = [socket.AF_INET, *([socket.AF_INET6] if socket.has_ipv6 else [])]
# Socket filters are programs; what they lock stays behind with them. TCP_FASTOPEN_KEY: see the module.
NOT_KEPT = {(SOL, 26), (SOL, 27), (SOL, 44), (SOL, 50), (SOL, 51), (SOL, 52), (TCP, 33)}


@contextmanager
def two(family: int) -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.socket(family, socket.SOCK_STREAM) as old,
        socket.socket(family, socket.SOCK_STREAM) as new,
    ):
        yield old, new


def read(sock: socket.socket, level: int, name: int) -> bytes | None:
    try:
        return sock.getsockopt(level, name, 64)
    except OSError:
        return None


def settable() -> Iterator[tuple[int, int, int]]:
    """(family, level, option) of every option that a guest may set on a TCP socket."""
    for family in FAMILIES:
        for level, names in OPTIONS.items():
            if level != IPV6 or family == socket.AF_INET6:
                for name in sorted(names):
                    yield family, level, name


VALUES = [
    *(struct.pack("=i", n) for n in (1, 2, 3, 0, 5, 100, 600, 5000, 65536)),
    struct.pack("=ii", 1, 5),
    struct.pack("=qq", 1, 500_000),
    b"reno",
]


def changed(sock: socket.socket, level: int, name: int) -> bool:
    """Gives the option another value than it had, if it can be changed."""
    before = read(sock, level, name)
    if before is None:
        return False
    for value in VALUES:
        try:
            sock.setsockopt(level, name, value)
        except OSError:
            continue
        if read(sock, level, name) != before:
            return True
    return False


@pytest.mark.parametrize(("family", "level", "name"), list(settable()))
def test_every_option_that_a_guest_may_change_travels(family: int, level: int, name: int) -> None:
    with two(family) as (old, new):
        if (level, name) in NOT_KEPT or not changed(old, level, name):
            return  # nothing that could be lost
        options.copy(old, new)
        assert read(new, level, name) == read(old, level, name)


CHOICES = {
    (SOL, socket.SO_KEEPALIVE): st.integers(0, 1),
    (SOL, socket.SO_REUSEADDR): st.integers(0, 1),
    (SOL, socket.SO_REUSEPORT): st.integers(0, 1),
    (SOL, socket.SO_OOBINLINE): st.integers(0, 1),
    (SOL, socket.SO_PRIORITY): st.integers(0, 6),
    (SOL, socket.SO_RCVLOWAT): st.integers(1, 100_000),
    (SOL, socket.SO_SNDBUF): st.integers(5000, 200_000),
    (SOL, socket.SO_RCVBUF): st.integers(5000, 200_000),
    (TCP, socket.TCP_NODELAY): st.integers(0, 1),
    (TCP, socket.TCP_MAXSEG): st.integers(100, 9000),
    (TCP, socket.TCP_KEEPIDLE): st.integers(1, 32767),
    (TCP, socket.TCP_KEEPINTVL): st.integers(1, 32767),
    (TCP, socket.TCP_KEEPCNT): st.integers(1, 127),
    (TCP, socket.TCP_SYNCNT): st.integers(1, 127),
    (TCP, socket.TCP_USER_TIMEOUT): st.integers(0, 1 << 30),
    (TCP, socket.TCP_NOTSENT_LOWAT): st.integers(0, 1 << 30),
    (IP, socket.IP_TOS): st.sampled_from([0, 8, 16, 0xB8]),
    (IP, socket.IP_TTL): st.integers(1, 255),
    (IP, 10): st.integers(0, 5),  # IP_MTU_DISCOVER
    (IP, 15): st.integers(0, 1),  # IP_FREEBIND
    (IP, 24): st.integers(0, 1),  # IP_BIND_ADDRESS_NO_PORT
}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional=CHOICES))
def test_any_mix_of_options_travels(wishes: dict[tuple[int, int], int]) -> None:
    with two(socket.AF_INET) as (old, new):
        for (level, name), value in wishes.items():
            old.setsockopt(level, name, value)
        options.copy(old, new)
        for level, name in CHOICES:
            assert read(new, level, name) == read(old, level, name), (level, name)


def test_buffers_that_nobody_set_stay_the_kernels_to_tune() -> None:
    with two(socket.AF_INET) as (old, new):
        options.copy(old, new)
        assert new.getsockopt(SOL, options.SO_BUF_LOCK) == 0
        old.setsockopt(SOL, socket.SO_RCVBUF, 50_000)
        options.copy(old, new)
        assert new.getsockopt(SOL, options.SO_BUF_LOCK) == options.RCVBUF_LOCK


@pytest.mark.skipif(socket.AF_INET6 not in FAMILIES, reason="this host has no IPv6")
@pytest.mark.parametrize("only", [0, 1])
def test_ipv6_only(only: int) -> None:
    with two(socket.AF_INET6) as (old, new):
        old.setsockopt(IPV6, socket.IPV6_V6ONLY, only)
        options.copy(old, new)
        assert new.getsockopt(IPV6, socket.IPV6_V6ONLY) == only


@pytest.mark.parametrize("flags", [0, os.O_NONBLOCK])
@pytest.mark.parametrize("before", [0, os.O_NONBLOCK])
def test_blocking_as_before(flags: int, before: int) -> None:
    with two(socket.AF_INET) as (old, new):
        old.setblocking(not flags)
        new.setblocking(not before)
        options.copy(old, new)
        assert os.get_blocking(new.fileno()) is not bool(flags)


def test_signal_driven_io() -> None:
    with two(socket.AF_INET) as (old, new):
        fcntl.fcntl(old, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(old, options.F_SETSIG, signal.SIGUSR1)
        fcntl.fcntl(old, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        options.copy(old, new)
        assert fcntl.fcntl(new, fcntl.F_GETFL) & os.O_ASYNC
        assert fcntl.fcntl(new, fcntl.F_GETOWN) == os.getpid()
        assert fcntl.fcntl(new, options.F_GETSIG) == signal.SIGUSR1
        fcntl.fcntl(old, fcntl.F_SETFL, 0)
        fcntl.fcntl(new, fcntl.F_SETFL, 0)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_refused_attempt_leaves_a_port_in_the_name_but_not_bound(family):
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.socket(family) as nobody, socket.socket(family) as sock:
        nobody.bind((host, 0))
        assert not options.is_bound(sock, socket.socket)
        assert sock.connect_ex(nobody.getsockname()) == errno.ECONNREFUSED
        assert sock.getsockname()[1] != 0
        assert not options.is_bound(sock, socket.socket)
        sock.bind((host, 0))
        assert options.is_bound(sock, socket.socket)
        sock.listen()
        assert options.is_bound(sock, socket.socket)


@pytest.mark.skipif(bool(nskit.missing()), reason=nskit.missing() or "-")
@pytest.mark.parametrize("reuse", [0, 1])
@pytest.mark.parametrize("host", ["192.0.2.77", "2001:db8::77"])
def test_a_port_beside_its_listener(host: str, reuse: int) -> None:
    """To an address that no interface has, and to a port that somebody listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    namespace = nskit.Namespace(nskit.GUEST)
    try:
        with (
            namespace.socket(family, socket.SOCK_STREAM) as listener,
            namespace.socket(family, socket.SOCK_STREAM) as sock,
        ):
            listener.bind(("", 7000))
            listener.listen()
            sock.setsockopt(SOL, socket.SO_REUSEADDR, reuse)
            with pytest.raises(OSError, match="in use"):
                options.bind_anywhere(sock, (host, 7000))
            options.bind_beside(sock, (host, 7000))
            assert sock.getsockname()[:2] == (host, 7000)
            assert sock.getsockopt(SOL, socket.SO_REUSEADDR) == reuse
            assert sock.getsockopt(TCP, options.TCP_REPAIR) == 0
            assert sock.getsockopt(*options.freebind(family)) == 0
    finally:
        namespace.close()


def test_unpaced_is_inherited_by_what_is_accepted():
    name = (TCP, socket.TCP_CONGESTION)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options.unpaced(listener)
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(*name, 16).rstrip(b"\0") == b"reno"
