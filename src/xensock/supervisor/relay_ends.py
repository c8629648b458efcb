"""What the relay asks of a connection's two ends, and does to them: the guest's own socket, and the one that dials."""

from __future__ import annotations

import select
import socket
import struct

from xensock.calls.address import Endpoint

TCP_INFO = 11
TCPI_OPT_TIMESTAMPS, TIMESTAMPS = 1, 12  # the option, and the room that it takes in a segment
# More is loopback's, as the guest's own. At first it is said to be half the window of the peer's SYN, so at most 32767.
MOST_SEGMENT = 16383
_HARD = struct.pack("ii", 1, 0)

Name = tuple[str, int]


def name_of(address: tuple[str, int] | tuple[str, int, int, int]) -> Name:
    """What getsockname() or accept() said, with IPv4-mapped addresses as IPv4."""
    return (address[0].removeprefix("::ffff:") if "." in address[0] else address[0], address[1])


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    elsewhere = getattr(sock, "reset", None)
    if elsewhere is not None:  # another backend's, which may be slow to answer
        elsewhere()
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HARD)
    sock.close()


def tcp_state(sock: socket.socket) -> int:
    """The TCP state as in include/net/tcp_states.h."""
    return sock.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 1)[0]


def address_for(guest: socket.socket, dest: Endpoint) -> bytes:
    """The address as a socket of the guest's takes it."""
    target = dest.unmapped()
    if guest.family == socket.AF_INET6 and target.family == socket.AF_INET:
        return Endpoint.from_python((f"::ffff:{target.host}", target.port)).sockaddr()
    return dest.sockaddr()


def is_possible(guest: socket.socket, target: Endpoint) -> bool:
    """Whether a socket of this family and IPV6_V6ONLY can reach the address at all."""
    if guest.family == socket.AF_INET:
        return target.family == socket.AF_INET
    return target.family == socket.AF_INET6 or not guest.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    )


def segments_like(listener: socket.socket, far: socket.socket) -> None:
    """Have the guest's next connection send segments of the size that the far side takes (tcp(7), TCP_MAXSEG)."""
    if hasattr(far, "splice") or far.family == socket.AF_UNIX:
        return  # another stack's, or no TCP: the guest's path has nothing to do with it
    tcp = socket.IPPROTO_TCP
    size = far.getsockopt(tcp, socket.TCP_MAXSEG)
    if far.getsockopt(tcp, TCP_INFO, 6)[5] & TCPI_OPT_TIMESTAMPS:
        size += TIMESTAMPS
    listener.setsockopt(tcp, socket.TCP_MAXSEG, size if size <= MOST_SEGMENT else 0)


def outcome_of(far: socket.socket) -> int:
    """Of a non-blocking connect: 0 connected, an errno, or -1 while it is under way."""
    poll = select.poll()
    poll.register(far, select.POLLOUT)
    if not poll.poll(0):
        return -1
    return far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
