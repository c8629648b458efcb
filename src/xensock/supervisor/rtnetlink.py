"""Lays out the guest's network over rtnetlink(7): devices, addresses, and the route that makes everything local.

Works on a netlink socket of the guest's namespace that the backend holds; it may, because it owns that namespace.
"""

from __future__ import annotations

import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

REQUEST, ACK, EXCL, CREATE = 0x1, 0x4, 0x200, 0x400
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 3, 18, 1, 2, 1
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS, IFA_F_NODAD = 1, 2, 8, 0x02
RTA_OIF, RTA_PREFSRC = 4, 7
RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL = 255, 3, 254, 2
IFF_UP = 1
LO = 1  # lo is the first device of every network namespace

# The IPv4 dummy address (RFC 7600, section 4.8) is nobody else's; so is a unique local prefix (RFC 4193).
GUEST4 = IPv4Address("192.0.0.8")
GUEST6 = IPv6Address("fd78:656e:736f::100")


def _attr(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


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
        """A pair with both ends inside: a card without a way out. Indices 2 (peer) and 3, as created."""
        far = bytes(16) + _attr(IFLA_IFNAME, peer.encode() + b"\0")
        data = _attr(IFLA_INFO_DATA, _attr(VETH_INFO_PEER, far))
        info = _attr(IFLA_LINKINFO, _attr(IFLA_INFO_KIND, b"veth\0") + data)
        self._ask(
            RTM_NEWLINK, CREATE | EXCL, bytes(16) + _attr(IFLA_IFNAME, name.encode() + b"\0") + info
        )

    def address(self, index: int, host: IPv4Address | IPv6Address, prefix: int) -> None:
        family = socket.AF_INET if host.version == 4 else socket.AF_INET6
        body = struct.pack("=BBBBi", family, prefix, 0, 0, index)
        body += _attr(IFA_LOCAL, host.packed) + _attr(IFA_ADDRESS, host.packed)
        if host.version == 6:
            body += _attr(IFA_FLAGS, struct.pack("=I", IFA_F_NODAD))
        self._ask(RTM_NEWADDR, CREATE | EXCL, body)

    def everything_local(self, family: int, source: IPv4Address | IPv6Address | None) -> None:
        """``ip route add local default dev lo``: any address is this namespace's own."""
        body = struct.pack(
            "=BBBBBBBBI", family, 0, 0, 0, RT_TABLE_LOCAL, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL, 0
        )
        body += _attr(RTA_OIF, struct.pack("=i", LO))
        if source is not None:
            body += _attr(RTA_PREFSRC, source.packed)
        self._ask(RTM_NEWROUTE, CREATE | EXCL, body)


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
    layout.veth("eth0", "xs0")
    names = {name: socket_index(link, name) for name in ("eth0", "xs0")}
    # A wider prefix would be a route of its own, more specific than the one below, to neighbours that never answer.
    layout.address(names["eth0"], GUEST4, 32)
    if ipv6:
        layout.address(names["eth0"], GUEST6, 64)
    layout.up(names["xs0"])
    layout.up(names["eth0"])
    layout.everything_local(socket.AF_INET, GUEST4)
    if os.path.exists("/proc/sys/net/ipv6"):
        layout.everything_local(socket.AF_INET6, GUEST6 if ipv6 else None)


def socket_index(link: socket.socket, name: str) -> int:
    """Index of a device in the namespace of the socket (netdevice(7), SIOCGIFINDEX)."""
    import fcntl

    request = struct.pack("16si20x", name.encode(), 0)
    return int(struct.unpack_from("=i", fcntl.ioctl(link.fileno(), 0x8933, request), 16)[0])
