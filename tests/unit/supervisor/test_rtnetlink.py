"""The guest's network as laid out in a real namespace: one card, and every address its own."""

from __future__ import annotations

import errno
import socket
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

import nskit
from xensock.supervisor import rtnetlink
from xensock.supervisor.rtnetlink import GUEST4, GUEST6, Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(bool(nskit.missing()), reason=nskit.missing() or "-")


@pytest.fixture
def bare() -> Iterator[nskit.Namespace]:
    namespace = nskit.Namespace("link set lo down\n")
    yield namespace
    namespace.close()


@pytest.fixture
def link(bare: nskit.Namespace) -> Iterator[socket.socket]:
    with bare.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        yield sock


def reach(namespace: nskit.Namespace, host: str) -> tuple[str, str]:
    """Connects to any address within the namespace; returns the address of each side as the server sees them."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as stack:
        server = stack.enter_context(namespace.socket(family, socket.SOCK_STREAM))
        client = stack.enter_context(namespace.socket(family, socket.SOCK_STREAM))
        server.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 0))
        server.listen()
        client.connect((host, server.getsockname()[1]))
        accepted = stack.enter_context(server.accept()[0])
        return accepted.getsockname()[0], accepted.getpeername()[0]


@pytest.mark.parametrize("ipv6", [True, False])
def test_every_address_is_local(bare: nskit.Namespace, link: socket.socket, ipv6: bool) -> None:
    rtnetlink.lay_out(link, ipv6)
    for host in ("198.51.100.7", "10.1.2.3", "169.254.169.254", str(GUEST4)):
        assert reach(bare, host) == (host, str(GUEST4))
    assert reach(bare, "127.0.0.1") == ("127.0.0.1", "127.0.0.1")
    if ipv6:
        for host in ("2001:db8::7", "fd00::1", str(GUEST6)):
            assert reach(bare, host) == (host, str(GUEST6))
        assert reach(bare, "::1") == ("::1", "::1")


def test_the_card(bare: nskit.Namespace, link: socket.socket) -> None:
    rtnetlink.lay_out(link, True)
    assert rtnetlink.socket_index(link, "lo") == 1
    assert rtnetlink.socket_index(link, "eth0") != rtnetlink.socket_index(link, "xs0")
    with pytest.raises(OSError, match=r"No such device"):
        rtnetlink.socket_index(link, "eth1")
    # No neighbours: the card's own network is local too, so nothing is ever sent.
    for host in (GUEST4 + 1, GUEST4 + 7, GUEST4 - 1):
        assert reach(bare, str(host)) == (str(host), str(GUEST4))
    for six in (GUEST6 + 1, GUEST6 - 1):
        assert reach(bare, str(six)) == (str(six), str(GUEST6))


def test_the_kernels_errors_are_raised(link: socket.socket) -> None:
    layout = Layout(link)
    layout.up(1)
    layout.veth("eth0", "xs0")
    with pytest.raises(OSError, match="File exists") as caught:
        layout.veth("eth0", "xs1")
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(OSError, match="No such device"):
        layout.address(4711, GUEST4, 29)
    with pytest.raises(OSError, match="No such device"):
        layout.up(4711)
    index = rtnetlink.socket_index(link, "eth0")
    layout.address(index, GUEST4, 29)
    with pytest.raises(OSError, match="File exists"):
        layout.address(index, GUEST4, 29)
    layout.everything_local(socket.AF_INET, GUEST4)
    with pytest.raises(OSError, match="File exists"):
        layout.everything_local(socket.AF_INET, GUEST4)


def test_a_source_that_is_not_there_is_an_error(link: socket.socket) -> None:
    layout = Layout(link)
    layout.up(1)
    with pytest.raises(OSError, match="Invalid argument"):
        layout.everything_local(socket.AF_INET, IPv4Address("192.0.2.1"))


def test_ipv6_of_the_host() -> None:
    with open("/proc/self/net/if_inet6") as table:
        lines = [line.split() for line in table]
    usable = [fields for fields in lines if fields[3] == "00" and fields[5] != "lo"]
    assert rtnetlink.host_has_ipv6() is bool(usable)
