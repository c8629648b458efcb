"""How this host sends to the world: what the guest's own way out of its network is made like."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from xensock.supervisor.rtnetlink import LARGEST, Way

if TYPE_CHECKING:
    from xensock.calls.address import IPAddress

IP_MTU, IPV6_MTU = 14, 24


def way(family: int, otherwise: IPAddress | None) -> Way:
    """The guest's datagrams say the same source as this host's, and are no longer; `otherwise`: the source where the
    host has no route.

    Nothing is sent: connect(2) of a datagram socket looks up the route. The addresses are those of documentation
    (RFC 5737, RFC 3849).
    """
    where = "198.51.100.1" if family == socket.AF_INET else "2001:db8::1"
    with socket.socket(family, socket.SOCK_DGRAM, 0) as probe:
        try:
            probe.connect((where, 9))
        except OSError:
            return Way(family, otherwise, 1500)
        if family == socket.AF_INET6:
            mtu = probe.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
            return Way(family, None, min(max(mtu, 1280), LARGEST))
        mtu = probe.getsockopt(socket.IPPROTO_IP, IP_MTU)
        source = IPv4Address(probe.getsockname()[0])
    if source.is_loopback:
        return Way(family, otherwise, 1500)
    return Way(family, source, min(max(mtu, 576), LARGEST))
