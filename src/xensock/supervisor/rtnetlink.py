"""Lays out the guest's network over rtnetlink(7): devices, addresses, and the route that makes everything local.

Works on a netlink socket of the guest's namespace that the backend holds; it may, because it owns that namespace.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REQUEST, ACK, EXCL, CREATE = 0x1, 0x4, 0x200, 0x400
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWRULE, RTM_DELRULE = 16, 20, 24, 32, 33
RTM_DELADDR, RTM_DELROUTE = 21, 25
IFLA_MTU, IFLA_AF_SPEC, IFLA_INET_CONF = 4, 26, 1
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 3, 18, 1, 2, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_F_NODAD = 1, 2, 8, 0x02
RTA_DST, RTA_OIF, RTA_PREFSRC, RTA_METRICS, RTAX_MTU = 1, 4, 7, 8, 2
RTN_MULTICAST = 5
RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_LINK, RT_SCOPE_HOST, RTN_UNICAST, RTN_LOCAL = (
    255,
    3,
    253,
    254,
    1,
    2,
)
FRA_DST, FRA_IIFNAME, FRA_PRIORITY, FRA_IP_PROTO, FRA_DPORT_RANGE = 1, 3, 6, 22, 24
FR_ACT_TO_TBL = 1
DEVCONF_RP_FILTER, DEVCONF_ACCEPT_LOCAL = 8, 23  # <linux/ip.h>
IFF_UP, IFF_NOARP = 1, 0x80
LARGEST = 65535  # MTU of the card: one packet for every datagram that there is
LO = 1  # lo is the first device of every network namespace

ANY_PROTOCOL = -1
OUTSIDE = 100  # the table with the way out for datagrams
DNS_PORT = 53

# The IPv4 dummy address (RFC 7600, section 4.8) is nobody else's; so is a unique local prefix (RFC 4193).
GUEST4 = IPv4Address("192.0.0.8")
GUEST6 = IPv6Address("fd78:656e:736f::100")


def _attr(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


CARD, FAR_END = "eth0", "xs0"


@dataclass(frozen=True, slots=True)
class Way:
    """The way out of one family: the source address of datagrams for which none was chosen, and what fits (bytes)."""

    family: int
    source: IPv4Address | IPv6Address | None
    mtu: int


class Layout:
    """Requests over one netlink socket; each raises OSError with the kernel's errno."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._seq = 0

    def _ask(self, kind: int, flags: int, body: bytes) -> None:
        self._seq += 1
        self._link.send(
            struct.pack("=IHHII", 16 + len(body), kind, flags | REQUEST | ACK, self._seq, 0) + body
        )
        answer = self._link.recv(65536)
        (error,) = struct.unpack_from("=i", answer, 16)
        if error:
            raise OSError(-error, os.strerror(-error))

    def up(self, index: int) -> None:
        self._ask(RTM_NEWLINK, 0, struct.pack("=BxHiII", 0, 0, index, IFF_UP, IFF_UP))

    def veth(self, name: str, peer: str) -> None:
        """A pair with both ends inside: what goes out by one comes in by the other. Neither asks for neighbours."""
        whole = _attr(IFLA_MTU, struct.pack("=I", LARGEST))
        quiet = struct.pack("=BxHiII", 0, 0, 0, IFF_NOARP, IFF_NOARP)
        far = quiet + _attr(IFLA_IFNAME, peer.encode() + b"\0") + whole
        data = _attr(IFLA_INFO_DATA, _attr(VETH_INFO_PEER, far))
        info = _attr(IFLA_LINKINFO, _attr(IFLA_INFO_KIND, b"veth\0") + data)
        near = quiet + _attr(IFLA_IFNAME, name.encode() + b"\0") + whole
        self._ask(RTM_NEWLINK, CREATE | EXCL, near + info)

    def accept_any_source(self, index: int) -> None:
        """Take packets in from addresses that are this namespace's own, as all are."""
        conf = _attr(DEVCONF_ACCEPT_LOCAL, struct.pack("=I", 1))
        conf += _attr(DEVCONF_RP_FILTER, struct.pack("=I", 0))
        spec = _attr(IFLA_AF_SPEC, _attr(socket.AF_INET, _attr(IFLA_INET_CONF, conf)))
        self._ask(RTM_NEWLINK, 0, struct.pack("=BxHiII", 0, 0, index, 0, 0) + spec)

    def address(
        self, index: int, host: IPv4Address | IPv6Address, prefix: int, there: bool = True
    ) -> None:
        """``ip address add``, or with `there` False ``del``."""
        family = socket.AF_INET if host.version == 4 else socket.AF_INET6
        body = struct.pack("=BBBBi", family, prefix, 0, 0, index)
        body += _attr(IFA_LOCAL, host.packed) + _attr(IFA_ADDRESS, host.packed)
        if host.version == 6:
            body += _attr(IFA_FLAGS, struct.pack("=I", IFA_F_NODAD))
        self._ask(*((RTM_NEWADDR, CREATE | EXCL) if there else (RTM_DELADDR, 0)), body)

    def everything_local(self, family: int, source: IPv4Address | IPv6Address | None) -> None:
        """``ip route add local default dev lo``: any address is this namespace's own."""
        self._local(family, None, source, there=True)

    def _local(
        self,
        family: int,
        host: IPv4Address | IPv6Address | None,
        source: IPv4Address | IPv6Address | None,
        there: bool,
    ) -> None:
        length = 0 if host is None else host.max_prefixlen
        body = struct.pack(
            "=BBBBBBBBI",
            *(family, length, 0, 0, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL, 0),
        )
        if host is not None:
            body += _attr(RTA_DST, host.packed)
        body += _attr(RTA_OIF, struct.pack("=i", LO))
        if source is not None:
            body += _attr(RTA_PREFSRC, source.packed)
        self._ask(*((RTM_NEWROUTE, CREATE | EXCL) if there else (RTM_DELROUTE, 0)), body)

    @contextmanager
    def called_from(
        self, host: IPv4Address | IPv6Address, source: IPv4Address | IPv6Address
    ) -> Iterator[None]:
        """Meanwhile, who connects to `host` and has no address yet gets `source`. Raises OSError, EEXIST among them."""
        with ExitStack() as undo:
            if (
                source.version == 6
            ):  # IPv6 takes no source that no device has (ip6_route_info_create)
                self.address(LO, source, 128)
                undo.callback(self.address, LO, source, 128, there=False)
            family = socket.AF_INET if host.version == 4 else socket.AF_INET6
            self._local(family, host, source, there=True)
            undo.callback(self._local, family, host, source, there=False)
            yield

    def way_out(
        self,
        index: int,
        family: int,
        source: IPv4Address | IPv6Address | None,
        mtu: int,
        groups: IPv6Network | None = None,
    ) -> None:
        """``ip route add default dev DEV src SOURCE mtu MTU table 100``; `groups`: ``multicast GROUPS`` instead."""
        kind, length = (RTN_MULTICAST, groups.prefixlen) if groups else (RTN_UNICAST, 0)
        body = struct.pack(
            "=BBBBBBBBI", family, length, 0, 0, OUTSIDE, RTPROT_BOOT, RT_SCOPE_LINK, kind, 0
        )
        if groups is not None:
            body += _attr(RTA_DST, groups.network_address.packed)
        body += _attr(RTA_OIF, struct.pack("=i", index))
        body += _attr(RTA_METRICS, _attr(RTAX_MTU, struct.pack("=I", mtu)))
        if source is not None:
            body += _attr(RTA_PREFSRC, source.packed)
        self._ask(RTM_NEWROUTE, CREATE | EXCL, body)

    def rule(
        self,
        family: int,
        priority: int,
        table: int,
        to: IPv4Network | IPv6Network | None = None,
        protocol: int = 0,
        port: int = 0,
    ) -> None:
        """``ip rule add``; with a protocol for what is sent here (``iif lo``), not for what arrives."""
        length = to.prefixlen if to is not None else 0
        body = struct.pack("=BBBBBBBBI", family, length, 0, 0, table, 0, 0, FR_ACT_TO_TBL, 0)
        body += _attr(FRA_PRIORITY, struct.pack("=I", priority))
        if to is not None:
            body += _attr(FRA_DST, to.network_address.packed)
        if protocol:
            body += _attr(FRA_IIFNAME, b"lo\0")
        if protocol > 0:
            body += _attr(FRA_IP_PROTO, bytes([protocol]))
        if port:
            body += _attr(FRA_DPORT_RANGE, struct.pack("=HH", port, port))
        self._ask(RTM_NEWRULE, CREATE | EXCL, body)

    def datagrams_out(self, family: int, own: tuple[IPv4Network | IPv6Network, ...]) -> None:
        """Datagrams to anybody but this namespace leave by table 100; all else stays as it was."""
        for number, network in enumerate(own, 1):
            self.rule(family, number, RT_TABLE_LOCAL, to=network)
        self.rule(family, 10, RT_TABLE_LOCAL, protocol=socket.IPPROTO_UDP, port=DNS_PORT)
        if family == socket.AF_INET:
            self.rule(family, 11, OUTSIDE, protocol=socket.IPPROTO_UDP)
            self.rule(family, 12, OUTSIDE, protocol=socket.IPPROTO_ICMP)
        else:
            # A path MTU that ICMPv6 tells is noted at a route that is looked up without a protocol (ip6_update_pmtu).
            self.rule(family, 11, RT_TABLE_LOCAL, protocol=socket.IPPROTO_TCP)
            # The relay's own packets to the guest's sockets (synreplay).
            self.rule(family, 13, RT_TABLE_LOCAL, protocol=socket.IPPROTO_RAW)
            self.rule(family, 14, OUTSIDE, protocol=ANY_PROTOCOL)
        self.rule(family, 20, RT_TABLE_LOCAL)
        first = struct.pack(
            "=BBBBBBBBI", family, 0, 0, 0, RT_TABLE_LOCAL, 0, 0, FR_ACT_TO_TBL, 0
        ) + _attr(FRA_PRIORITY, bytes(4))
        self._ask(RTM_DELRULE, 0, first)


def host_has_ipv6() -> bool:
    """Whether this host has an IPv6 address with which it could reach others (/proc/net/if_inet6)."""
    try:
        with open("/proc/self/net/if_inet6") as f:
            return any(line.split()[3] == "00" and not line.endswith(" lo\n") for line in f)
    except OSError:
        return False


def lay_out(link: socket.socket, ipv6: bool) -> None:
    """A guest looks like a host with one card, so that getaddrinfo's AI_ADDRCONFIG and interface lists work."""
    layout = Layout(link)
    layout.up(LO)
    layout.veth(CARD, FAR_END)
    names = {name: socket_index(link, name) for name in (CARD, FAR_END)}
    # A wider prefix would be a route of its own, more specific than the one below, to neighbours that never answer.
    layout.address(names[CARD], GUEST4, 32)
    if ipv6:
        layout.address(names[CARD], GUEST6, 64)
    layout.up(names[FAR_END])
    layout.up(names[CARD])
    layout.everything_local(socket.AF_INET, GUEST4)
    if os.path.exists("/proc/sys/net/ipv6"):
        layout.everything_local(socket.AF_INET6, GUEST6 if ipv6 else None)


def let_datagrams_out(link: socket.socket, ways: Sequence[Way]) -> None:
    """Lead UDP and ICMP echo to the card. Raises OSError where the kernel has no policy routing by protocol (4.17)."""
    layout = Layout(link)
    card = socket_index(link, CARD)
    for way in ways:
        if way.family == socket.AF_INET:
            layout.accept_any_source(card)
        layout.way_out(card, way.family, way.source, way.mtu)
        own: tuple[IPv4Network | IPv6Network, ...] = (
            IPv4Network("127.0.0.0/8"),
            IPv4Network(GUEST4),
        )
        if way.family == socket.AF_INET6:
            # By a route of another kind, what is sent to a group would not come back to members here (ip6_rt_init_dst).
            layout.way_out(card, way.family, way.source, way.mtu, IPv6Network("ff00::/8"))
            own = (IPv6Network("::1/128"), IPv6Network(GUEST6))
        layout.datagrams_out(way.family, own)


def hardware_address(link: socket.socket, name: str) -> bytes:
    """The 6 bytes of a device (netdevice(7), SIOCGIFHWADDR)."""
    import fcntl

    request = struct.pack("16s24x", name.encode())
    return fcntl.ioctl(link.fileno(), 0x8927, request)[18:24]


def socket_index(link: socket.socket, name: str) -> int:
    """Index of a device in the namespace of the socket (netdevice(7), SIOCGIFINDEX)."""
    import fcntl

    request = struct.pack("16si20x", name.encode(), 0)
    return int(struct.unpack_from("=i", fcntl.ioctl(link.fileno(), 0x8933, request), 16)[0])
