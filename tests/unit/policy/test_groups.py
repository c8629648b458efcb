"""Address sets against a plain list of networks, and the groups against well-known addresses."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.policy.groups import (
    GROUPS,
    AddressSet,
    destination_forms,
    protected_group,
    unmapped,
)

# Networks in a small corner of IPv4, so that they meet.
corner = st.builds(
    lambda bits, length: IPv4Network((0x0A000000 | bits, length), strict=False),
    st.integers(0, 255),
    st.integers(24, 32),
)
points = st.integers(0x0A000000 - 1, 0x0A000000 + 256).map(IPv4Address)


@given(st.lists(corner, max_size=5), st.lists(corner, max_size=5), points)
def test_membership(nets: list[IPv4Network], holes: list[IPv4Network], point: IPv4Address) -> None:
    held = AddressSet(nets, without=map(str, holes))
    expected = any(point in net for net in nets) and not any(point in net for net in holes)
    assert (point in held) == expected
    assert IPv6Address(int(point)) not in held


@given(st.lists(corner, max_size=4), st.lists(corner, max_size=4))
def test_inside(some: list[IPv4Network], others: list[IPv4Network]) -> None:
    expected = all(any(point in net for net in others) for net in some for point in net)
    assert AddressSet(some).inside(AddressSet(others)) == expected


@pytest.mark.parametrize(
    ("host", "groups"),
    [
        ("8.8.8.8", {"public"}),
        ("192.0.2.1", {"public"}),
        ("198.51.100.7", {"public"}),
        ("203.0.113.9", {"public"}),
        ("198.18.0.1", {"public"}),
        ("2001:db8::1", {"public"}),
        ("3fff::1", {"public"}),
        ("2606:4700::1111", {"public"}),
        ("64:ff9b::808:808", {"public"}),
        ("10.1.2.3", {"private"}),
        ("172.31.255.255", {"private"}),
        ("172.32.0.0", {"public"}),
        ("192.168.0.1", {"private"}),
        ("100.64.0.1", {"private"}),
        ("fd12::1", {"private"}),
        ("127.0.0.53", {"loopback"}),
        ("::1", {"loopback"}),
        ("169.254.1.1", {"linklocal"}),
        ("fe80::1", {"linklocal"}),
        ("169.254.169.254", {"linklocal", "metadata"}),
        ("fd00:ec2::254", {"private", "metadata"}),
        ("100.100.100.200", {"private", "metadata"}),
        ("168.63.129.16", {"metadata"}),
        ("224.0.0.251", set()),
        ("255.255.255.255", set()),
        ("240.0.0.1", set()),
        ("0.1.2.3", set()),
        ("ff02::1", set()),
        ("::8.8.8.8", set()),
        ("::2", set()),
    ],
)
def test_groups(host: str, groups: set[str]) -> None:
    address = ip_address(host)
    assert {name for name, held in GROUPS.items() if address in held} == groups | {"any"}


def test_metadata_is_protected_before_link_local() -> None:
    assert protected_group(ip_address("169.254.169.254")) == "metadata"
    assert protected_group(ip_address("169.254.169.253")) == "linklocal"
    assert protected_group(ip_address("::1")) == "loopback"
    assert protected_group(ip_address("10.0.0.1")) is None


@pytest.mark.parametrize(
    ("host", "forms"),
    [
        ("0.0.0.0", ["127.0.0.1"]),
        ("::", ["::1"]),
        ("::ffff:0.0.0.0", ["127.0.0.1"]),
        ("::ffff:127.0.0.1", ["127.0.0.1"]),
        ("64:ff9b::169.254.169.254", ["64:ff9b::a9fe:a9fe", "169.254.169.254"]),
        ("2001:db8::1", ["2001:db8::1"]),
        ("10.0.0.1", ["10.0.0.1"]),
    ],
)
def test_destination_forms(host: str, forms: list[str]) -> None:
    assert list(map(str, destination_forms(ip_address(host)))) == forms


def test_unmapped() -> None:
    assert unmapped(ip_address("::ffff:10.0.0.1")) == ip_address("10.0.0.1")
    assert unmapped(ip_address("::10.0.0.1")) == ip_address("::10.0.0.1")
