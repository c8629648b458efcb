"""The few netlink(7) requests of checks: those that build a guest's network for a moment, and a look at sockets.

Every function raises OSError with the errno of the kernel's answer.
"""

from __future__ import annotations

import os
import socket
import struct

PATIENCE = 10  # seconds for an answer of the kernel's

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
TCP_LISTEN = 10
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_DUMP = 0x300
NLM_F_REQUEST = 1
NLM_F_ACK = 4
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
RTM_NEWLINK = 16
RTM_NEWROUTE = 24
IFLA_IFNAME = 3
IFLA_LINKINFO = 18
IFLA_INFO_KIND = 1
IFLA_INFO_DATA = 2
VETH_INFO_PEER = 1
RTA_OIF = 4
IFF_UP = 1
LOOPBACK = 1  # the interface index of lo in every network namespace


def _attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("HH", length, kind) + value + bytes(-length % 4)


def _request(kind: int, flags: int, body: bytes) -> None:
    message = struct.pack("IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST | NLM_F_ACK, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.send(message + body)
        reply = link.recv(65536)
    (error,) = struct.unpack_from("i", reply, 16)
    if error:
        raise OSError(-error, os.strerror(-error))


def _interface(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def loopback_up() -> None:
    """`ip link set lo up`."""
    _request(RTM_NEWLINK, 0, _interface(LOOPBACK, IFF_UP))


def add_veth(name: str, peer: str) -> None:
    """`ip link add NAME type veth peer name PEER`: both ends in this namespace."""
    other = _attribute(
        VETH_INFO_PEER, _interface() + _attribute(IFLA_IFNAME, peer.encode() + b"\0")
    )
    info = _attribute(IFLA_INFO_KIND, b"veth") + _attribute(IFLA_INFO_DATA, other)
    _add_link(name, info)


def add_dummy(name: str) -> None:
    """`ip link add NAME type dummy`."""
    _add_link(name, _attribute(IFLA_INFO_KIND, b"dummy"))


def _add_link(name: str, info: bytes) -> None:
    _request(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        _interface()
        + _attribute(IFLA_IFNAME, name.encode() + b"\0")
        + _attribute(IFLA_LINKINFO, info),
    )


def all_addresses_local() -> None:
    """`ip route add local default dev lo`: every IPv4 address belongs to this namespace."""
    # family, destination and source lengths, TOS, table local, protocol boot, scope host, local
    route = struct.pack("BBBBBBBBI", socket.AF_INET, 0, 0, 0, 255, 3, 254, 2, 0)
    _request(
        RTM_NEWROUTE,
        NLM_F_CREATE | NLM_F_EXCL,
        route + _attribute(RTA_OIF, struct.pack("i", LOOPBACK)),
    )


def look_at_sockets() -> None:
    """Ask for sockets of TCP, UDP and AF_UNIX. Raises OSError: ENOENT where the kernel lacks a module for one."""
    # struct inet_diag_req_v2, struct unix_diag_req (sock_diag(7))
    for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        states = 1 << TCP_LISTEN
        _ask(struct.pack("=BBBBI", socket.AF_INET, protocol, 0, 0, states) + bytes(48))
    _ask(struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 1 << TCP_LISTEN, 0, 0, 0, 0))


def _ask(body: bytes) -> None:
    """Begin a dump of sockets. Raises OSError."""
    head = struct.pack(
        "=IHHII", 16 + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0
    )
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as link:
        link.settimeout(PATIENCE)
        link.send(head + body)
        answer = link.recv(1 << 16)
    kind, error = struct.unpack_from("=H", answer, 4)[0], struct.unpack_from("=i", answer, 16)[0]
    if kind in (NLMSG_ERROR, NLMSG_DONE) and error:
        raise OSError(-error, os.strerror(-error))
