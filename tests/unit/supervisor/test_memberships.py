"""What programs write to join a group, by every option; and anything else that they may write."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.supervisor import memberships
from xensock.supervisor.filter import JOINS

IP, IP6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
FOUR, SIX = IPv4Address("239.1.2.3"), IPv6Address("ff05::1:2")
SOURCE = IPv4Address("203.0.113.7")


def storage(host: IPv4Address | IPv6Address) -> bytes:
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    gap = 2 if host.version == 4 else 6
    return (struct.pack("=H", family) + bytes(gap) + host.packed).ljust(128, b"\0")


@pytest.mark.parametrize("name", [memberships.JOIN4, memberships.LEAVE4])
def test_ip_mreq_and_ip_mreqn(name: int) -> None:
    wish = memberships.parse(IP, name, FOUR.packed + SOURCE.packed)
    assert wish is not None
    assert wish[:3] == (FOUR, SOURCE, 0)
    wish = memberships.parse(IP, name, FOUR.packed + SOURCE.packed + struct.pack("=I", 5))
    assert wish is not None
    assert wish[:3] == (FOUR, SOURCE, 5)
    assert wish.by(9) == FOUR.packed + bytes(4) + struct.pack("=I", 9)


def test_ip_mreq_source() -> None:
    raw = FOUR.packed + bytes(4) + SOURCE.packed
    wish = memberships.parse(IP, memberships.ADD_SOURCE, raw)
    assert wish is not None
    assert wish[:3] == (FOUR, IPv4Address(0), 0)
    assert wish.by(9) == FOUR.packed + memberships.GUEST4.packed + SOURCE.packed


def test_ipv6_mreq() -> None:
    wish = memberships.parse(IP6, memberships.JOIN6, SIX.packed + struct.pack("=I", 5))
    assert wish is not None
    assert wish[:3] == (SIX, IPv4Address(0), 5)
    assert wish.by(9) == SIX.packed + struct.pack("=I", 9)


@pytest.mark.parametrize(("level", "group"), [(IP, FOUR), (IP6, SIX)])
def test_group_req_and_group_source_req(level: int, group: IPv4Address | IPv6Address) -> None:
    raw = struct.pack("=I4x", 5) + storage(group)
    wish = memberships.parse(level, memberships.MCAST_JOIN, raw)
    assert wish is not None
    assert wish[:3] == (group, IPv4Address(0), 5)
    assert wish.by(9) == struct.pack("=I4x", 9) + storage(group)
    both = raw + storage(SOURCE)
    wish = memberships.parse(level, memberships.MCAST_JOIN_SOURCE, both)
    assert wish is not None
    assert wish.group == group
    assert memberships.parse(level, memberships.MCAST_JOIN_SOURCE, raw) is None
    assert memberships.parse(IP + IP6 - level, memberships.MCAST_JOIN, raw) is None


CALLS = st.sampled_from([(level, name) for level, names in JOINS.items() for name in names])


@given(CALLS, st.binary(max_size=300), st.integers(0, 0xFFFFFFFF))
def test_anything_else_is_the_kernels_to_word(
    call: tuple[int, int], raw: bytes, index: int
) -> None:
    wish = memberships.parse(*call, raw)
    if wish is not None:
        assert len(wish.by(index)) <= max(len(raw), 12)
