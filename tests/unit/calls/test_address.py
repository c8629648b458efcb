"""Endpoints against the kernel's own idea of sockaddr, and round trips."""

import errno
import socket
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.calls import AddressError, Endpoint, family_of

ports = st.integers(0, 65535)
words = st.integers(0, 2**32 - 1)
v4 = st.builds(Endpoint, st.ip_addresses(v=4), ports)
v6 = st.builds(Endpoint, st.ip_addresses(v=6), ports, words, words)
endpoints = v4 | v6


@given(endpoints)
def test_sockaddr_round_trip(end: Endpoint) -> None:
    raw = end.sockaddr()
    assert len(raw) == (16 if end.family == socket.AF_INET else 28)
    assert family_of(raw) == end.family
    assert Endpoint.from_sockaddr(raw) == end
    assert Endpoint.from_sockaddr(raw + b"\xff" * 100) == end


@given(endpoints)
def test_python_round_trip(end: Endpoint) -> None:
    assert Endpoint.from_python(end.as_python()) == end


@given(endpoints, st.data())
def test_every_cut_is_refused_as_the_kernel_does(end: Endpoint, data: st.DataObject) -> None:
    least = 16 if end.family == socket.AF_INET else 24
    cut = data.draw(st.integers(0, least - 1))
    with pytest.raises(AddressError) as caught:
        Endpoint.from_sockaddr(end.sockaddr()[:cut])
    assert caught.value.errno == errno.EINVAL


@given(st.sampled_from([b"\2\0", b"\n\0", b"\0\0", b"\0\2"]), st.binary(max_size=60))
def test_any_bytes_give_an_endpoint_or_the_kernels_error(head: bytes, tail: bytes) -> None:
    raw = head + tail
    least = {int(socket.AF_INET): 16, int(socket.AF_INET6): 24}.get(family_of(raw))
    if least is not None and len(raw) >= least:
        assert Endpoint.from_sockaddr(raw).sockaddr()[:8] == raw[:8]
        return
    with pytest.raises(AddressError) as caught:
        Endpoint.from_sockaddr(raw)
    assert caught.value.errno == (errno.EAFNOSUPPORT if least is None else errno.EINVAL)


def test_ipv6_without_scope_is_accepted() -> None:
    end = Endpoint(IPv6Address("fe80::1"), 80, scope=7)
    assert Endpoint.from_sockaddr(end.sockaddr()[:24]) == Endpoint(IPv6Address("fe80::1"), 80)


@pytest.mark.parametrize("family", [socket.AF_UNSPEC, socket.AF_UNIX, socket.AF_NETLINK, 65535])
def test_other_families(family: int) -> None:
    raw = family.to_bytes(2, sys.byteorder) + bytes(30)
    assert family_of(raw) == family
    with pytest.raises(AddressError) as caught:
        Endpoint.from_sockaddr(raw)
    assert caught.value.errno == errno.EAFNOSUPPORT


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_kernel_agrees(host: str) -> None:
    """A connect with our bytes reaches a listener; Python's tuple of it reads back the same."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        try:
            server.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        server.listen()
        end = Endpoint.from_python(server.getsockname())
        assert end.host == ip_address(host)
        with socket.socket(family, socket.SOCK_STREAM) as client:
            raw = end.sockaddr()
            assert libc.connect(client.fileno(), raw, len(raw)) == 0, ctypes.get_errno()
            assert Endpoint.from_python(client.getpeername()) == end


def test_unmapped() -> None:
    mapped = Endpoint(IPv6Address("::ffff:192.0.2.1"), 80, flow=3)
    assert mapped.unmapped() == Endpoint(IPv4Address("192.0.2.1"), 80)
    for same in ("::1", "::192.0.2.1", "64:ff9b::c000:201", "198.51.100.7"):
        end = Endpoint(ip_address(same), 80)
        assert end.unmapped() is end


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (Endpoint(IPv4Address("198.51.100.7"), 80), "198.51.100.7:80"),
        (Endpoint(IPv6Address("2001:db8::1"), 80), "[2001:db8::1]:80"),
        (Endpoint(IPv6Address("fe80::1"), 80, 2), "[fe80::1%2]:80"),
    ],
)
def test_text(end: Endpoint, text: str) -> None:
    assert str(end) == text


def test_nonsense_is_refused() -> None:
    for port in (-1, 65536):
        with pytest.raises(ValueError, match="0-65535"):
            Endpoint(IPv4Address(0), port)
    with pytest.raises(ValueError, match="no scope"):
        Endpoint(IPv4Address(0), 1, scope=1)
    with pytest.raises(ValueError, match="32-bit"):
        Endpoint(IPv6Address(0), 1, scope=2**32)
    with pytest.raises(ValueError, match="interface index"):
        Endpoint(IPv6Address("fe80::1%eth0"), 1)
    with pytest.raises(ValueError, match=r"web\.test"):
        Endpoint.from_python(("web.test", 80))


def test_scoped_tuple() -> None:
    end = Endpoint.from_python(("fe80::1%eth0", 80, 0, 3))
    assert (str(end.host), end.scope) == ("fe80::1", 3)
