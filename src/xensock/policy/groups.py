"""Sets of addresses, and the named ones (groups) that rules can speak of.

Sources: the IANA special-purpose address registries (RFC 6890), RFC 1918, 4193, 6598, 6052.
Documentation and benchmark ranges count as public. Multicast, broadcast and reserved ranges
belong to no group but `any`.
"""

from __future__ import annotations

from bisect import bisect_right
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xensock.calls.address import IPAddress

IPNetwork = IPv4Network | IPv6Network
_Span = tuple[int, int]
_LAST = {4: 2**32 - 1, 6: 2**128 - 1}


class AddressSet:
    """An immutable set of IPv4 and IPv6 addresses, kept as sorted disjoint spans of numbers."""

    __slots__ = ("_spans", "_starts")

    def __init__(self, networks: Iterable[IPNetwork | str], without: Iterable[str] = ()) -> None:
        self._spans = {
            version: _subtract(_merge(_spans(networks, version)), _merge(_spans(without, version)))
            for version in (4, 6)
        }
        self._starts = {v: tuple(low for low, _ in spans) for v, spans in self._spans.items()}

    def __contains__(self, host: IPAddress) -> bool:
        number = int(host)
        at = bisect_right(self._starts[host.version], number) - 1
        return at >= 0 and number <= self._spans[host.version][at][1]

    def whole(self, version: int) -> bool:
        """Whether every address of this IP version is in the set."""
        return self._spans[version] == ((0, _LAST[version]),)

    def touches(self, version: int) -> bool:
        """Whether any address of this IP version is in the set."""
        return bool(self._spans[version])

    def inside(self, other: AddressSet) -> bool:
        """Whether every address of this set is in the other one too."""
        return all(not _subtract(self._spans[version], other._spans[version]) for version in (4, 6))


def _spans(networks: Iterable[IPNetwork | str], version: int) -> list[_Span]:
    nets = (ip_network(net) if isinstance(net, str) else net for net in networks)
    return [
        (int(net.network_address), int(net.broadcast_address))
        for net in nets
        if net.version == version
    ]


def _merge(spans: list[_Span]) -> tuple[_Span, ...]:
    merged: list[_Span] = []
    for low, high in sorted(spans):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _subtract(spans: tuple[_Span, ...], holes: tuple[_Span, ...]) -> tuple[_Span, ...]:
    left: list[_Span] = []
    for span_low, high in spans:
        low = span_low
        for hole_low, hole_high in holes:
            if hole_high < low or hole_low > high:
                continue
            if hole_low > low:
                left.append((low, hole_low - 1))
            low = hole_high + 1
        if low <= high:
            left.append((low, high))
    return tuple(left)


ANY = ("0.0.0.0/0", "::/0")
LOOPBACK = ("127.0.0.0/8", "::1/128")
LINKLOCAL = ("169.254.0.0/16", "fe80::/10")
PRIVATE = (
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",  # shared space: carrier NAT, Tailscale
    "fc00::/7",
    "fec0::/10",  # site-local, deprecated but not routed outside
    "200::/7",  # Yggdrasil
    "64:ff9b:1::/48",  # NAT64 of the site itself
)
METADATA = (
    "169.254.169.254/32",  # AWS, Azure, Google, Oracle, OpenStack, …
    "169.254.170.2/32",  # AWS: credentials of ECS tasks
    "169.254.170.23/32",  # AWS: credentials of EKS pods
    "169.254.42.42/32",  # Scaleway
    "169.254.0.23/32",  # Tencent
    "100.100.100.200/32",  # Alibaba
    "168.63.129.16/32",  # Azure: WireServer
    "192.0.0.192/32",  # Oracle, older
    "fd00:ec2::254/128",  # AWS
    "fd00:ec2::23/128",  # AWS: credentials of EKS pods
    "fd20:ce::254/128",  # Google
    "fd00:42::42/128",  # Scaleway
)
_NOWHERE = ("0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")  # this network, multicast, reserved

GROUPS: dict[str, AddressSet] = {
    "any": AddressSet(ANY),
    "public": AddressSet(
        ("0.0.0.0/0", "2000::/3", "64:ff9b::/96"),
        without=(*_NOWHERE, *LOOPBACK, *LINKLOCAL, *PRIVATE, *METADATA),
    ),
    "private": AddressSet(PRIVATE),
    "loopback": AddressSet(LOOPBACK),
    "linklocal": AddressSet(LINKLOCAL),
    "metadata": AddressSet(METADATA),
}

# The networks of each group; what `public` leaves out of its own is in GROUPS alone.
GROUP_NETWORKS: dict[str, tuple[IPNetwork, ...]] = {
    name: tuple(ip_network(network) for network in networks)
    for name, networks in (
        ("any", ANY),
        ("public", ("0.0.0.0/0", "2000::/3", "64:ff9b::/96")),
        ("private", PRIVATE),
        ("loopback", LOOPBACK),
        ("linklocal", LINKLOCAL),
        ("metadata", METADATA),
    )
}

# Ranges that open only to a rule that names them; metadata first, as it lies in other groups.
PROTECTED = ("loopback", "metadata", "linklocal")


def protected_group(host: IPAddress) -> str | None:
    """The protected group that an address is in, if any."""
    for group in PROTECTED:
        if host in GROUPS[group]:
            return group
    return None


_NAT64 = int(IPv6Address("64:ff9b::")) >> 32


def unmapped(host: IPAddress) -> IPAddress:
    """The IPv4 address that ::ffff:a.b.c.d stands for, else the address itself."""
    if host.version == 6 and host.ipv4_mapped is not None:
        return host.ipv4_mapped
    return host


def destination_forms(host: IPAddress) -> tuple[IPAddress, ...]:
    """What a destination really means: the address that is decided on, then the IPv4 address
    that a NAT64 gateway (RFC 6052) makes of it, if any.

    The unspecified address as a destination is the loopback (Linux: ip_route_output_key,
    tcp_v6_connect).
    """
    host = unmapped(host)
    if host.version == 4:
        return (IPv4Address(0x7F000001),) if int(host) == 0 else (host,)
    if int(host) == 0:
        return (IPv6Address(1),)
    if int(host) >> 32 == _NAT64:
        return (host, IPv4Address(int(host) & 0xFFFFFFFF))
    return (host,)
