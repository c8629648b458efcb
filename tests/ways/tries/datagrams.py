"""Ways of a datagram to a port that the rules refuse, or to the host's own loopback: done where it is answered."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from typing import TYPE_CHECKING

import kit
from kit import SITE, attempt, connect_raw, sockaddr4

if TYPE_CHECKING:
    from collections.abc import Callable

PEER, REFUSED, ALLOWED = SITE["peer"], SITE["refused_udp"], SITE["allowed_udp"]
LOCAL = SITE["local_udp"]
IP_PKTINFO = 8


def datagrams(family: int = socket.AF_INET) -> socket.socket:
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.settimeout(kit.PATIENCE)
    return made


def twins() -> tuple[socket.socket, socket.socket]:
    """Two at one port: what a connected one of them does not take, since it came from elsewhere, is the other's."""
    both = datagrams(), datagrams()
    for each in both:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    both[0].bind(("0.0.0.0", 0))
    both[1].bind(both[0].getsockname())
    return both


def answered(sock: socket.socket, port: int = REFUSED) -> None:
    """An answer from there; raises OSError once an answer to a later datagram has come by the way that is allowed."""
    with datagrams() as other:
        other.sendto(b"later", (PEER, ALLOWED))
        other.recv(100)
    sock.settimeout(0.1)
    try:
        while sock.recvfrom(100)[1][1] != port:
            pass
    except TimeoutError:
        raise OSError(errno.ENODATA, "no answer") from None


def packed(data: bytes, address: bytes) -> tuple[bytes, tuple[object, ...]]:
    """A struct mmsghdr (sendmmsg(2)), and what it points to."""
    name, room = ctypes.create_string_buffer(address), ctypes.create_string_buffer(data)
    piece = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(room), len(data)))
    head = struct.pack(
        "=QI4xQQQQi4x", ctypes.addressof(name), 16, ctypes.addressof(piece), 1, 0, 0, 0
    )
    return head + bytes(8), (name, room, piece)


@attempt("datagram by sendto")
def _() -> None:
    sock = datagrams()
    sock.sendto(b"x", (PEER, REFUSED))
    answered(sock)


@attempt("datagram by connect")
def _() -> None:
    sock = datagrams()
    sock.connect((PEER, REFUSED))
    sock.send(b"x")
    answered(sock)


@attempt("datagram by sendto of a socket that is connected elsewhere")
def _() -> None:
    sock, twin = twins()
    sock.connect((PEER, ALLOWED))
    sock.sendto(b"x", (PEER, REFUSED))
    answered(twin)


@attempt("datagram by sendmsg of a socket that is connected elsewhere")
def _() -> None:
    sock, twin = twins()
    sock.connect((PEER, ALLOWED))
    sock.sendmsg([b"x"], [], 0, (PEER, REFUSED))
    answered(twin)


@attempt("datagram by sendmmsg, behind one that is allowed")
def _() -> None:
    first, kept = packed(b"x", sockaddr4(PEER, ALLOWED))
    second, also = packed(b"y", sockaddr4(PEER, REFUSED))
    both = ctypes.create_string_buffer(first + second)
    sock = datagrams()
    if kit.libc.sendmmsg(sock.fileno(), both, 2, 0) != 2:
        raise OSError(ctypes.get_errno(), "sendmmsg")
    assert kept
    assert also
    answered(sock)


@attempt("datagram by io_uring")
def _() -> None:
    ring, sock = kit.Ring(), datagrams()
    message, kept = packed(b"x", sockaddr4(PEER, REFUSED))
    room = ctypes.create_string_buffer(message)
    ring(ring.SENDMSG, sock.fileno(), 0, ctypes.addressof(room), 1)
    assert kept
    answered(sock)


@attempt("datagram after AF_UNSPEC")
def _() -> None:
    sock = datagrams()
    sock.connect((PEER, ALLOWED))
    sock.send(b"x")
    connect_raw(sock, bytes(16))
    sock.connect((PEER, REFUSED))
    sock.send(b"x")
    answered(sock)


@attempt("datagram by an interface of its choice")
def _() -> None:
    sock = datagrams()
    info = struct.pack("=I4s4s", 0, bytes(4), bytes(4))
    sock.sendmsg([b"x"], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, (PEER, REFUSED))
    answered(sock)


def own_address() -> str:
    with datagrams() as sock:
        sock.connect((PEER, ALLOWED))
        return str(sock.getsockname()[0])


@attempt("datagram from an address of its choice")
def _() -> None:
    sock = datagrams()
    info = struct.pack("=I4s4s", 0, socket.inet_aton(own_address()), bytes(4))
    sock.sendmsg([b"x"], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, (PEER, REFUSED))
    answered(sock)


def by_each_interface(
    family: int, host: str, message: Callable[[int], tuple[int, int, bytes]]
) -> None:
    """To the refused port, with the control message for each interface by its number, until one is answered."""
    worst = OSError(errno.ENODEV, "no interface")
    for number, _ in socket.if_nameindex():
        sock = datagrams(family)
        try:
            sock.sendmsg([b"x"], [message(number)], 0, (host, REFUSED))
            answered(sock)
        except OSError as error:
            worst = error
        else:
            return
    raise worst


@attempt("datagram by each interface that there is")
def _() -> None:
    def message(number: int) -> tuple[int, int, bytes]:
        return socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=I4s4s", number, bytes(4), bytes(4))

    by_each_interface(socket.AF_INET, PEER, message)


@attempt("datagram mapped into IPv6, from an address and by an interface of its choice")
def _() -> None:
    mapped = socket.inet_pton(socket.AF_INET6, f"::ffff:{own_address()}")

    def message(number: int) -> tuple[int, int, bytes]:
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, mapped + struct.pack("=I", number)

    by_each_interface(socket.AF_INET6, f"::ffff:{PEER}", message)


@attempt("datagram mapped into IPv6")
def _() -> None:
    sock = datagrams(socket.AF_INET6)
    sock.sendto(b"x", (f"::ffff:{PEER}", REFUSED))
    answered(sock)


@attempt("datagram to the host's loopback")
def _() -> None:
    sock = datagrams()
    sock.sendto(b"x", ("127.0.0.1", LOCAL))
    answered(sock, LOCAL)


if __name__ == "__main__":
    kit.main()
