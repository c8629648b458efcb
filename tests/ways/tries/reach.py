"""Ways to a TCP port that the rules refuse, to the host's own loopback, and to listen where that is refused."""

from __future__ import annotations

import socket
import struct

import kit
from kit import SITE, attempt, connect_raw, sockaddr4, sockaddr6, stream

PEER, REFUSED, ALLOWED = SITE["peer"], SITE["refused"], SITE["allowed"]
LOCAL, PORT = SITE["local"], SITE["port"]
FASTOPEN = 0x20000000


@attempt("connect")
def _() -> None:
    stream().connect((PEER, REFUSED))


@attempt("connect after AF_UNSPEC")
def _() -> None:
    sock = stream()
    sock.connect((PEER, ALLOWED))
    connect_raw(sock, bytes(16))
    sock.connect((PEER, REFUSED))


@attempt("fast open by sendto")
def _() -> None:
    with socket.socket() as sock:
        sock.sendto(b"x", FASTOPEN, (PEER, REFUSED))


@attempt("fast open by sendmsg")
def _() -> None:
    with socket.socket() as sock:
        sock.sendmsg([b"x"], [], FASTOPEN, (PEER, REFUSED))


@attempt("fast open by sendmmsg")
def _() -> None:
    import ctypes

    name = ctypes.create_string_buffer(sockaddr4(PEER, REFUSED))
    data = ctypes.create_string_buffer(b"x")
    piece = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(data), 1))
    head = struct.pack(
        "=QI4xQQQQi4x", ctypes.addressof(name), 16, ctypes.addressof(piece), 1, 0, 0, 0
    )
    many = ctypes.create_string_buffer(head + bytes(8))
    sock = stream()
    sock.setblocking(True)
    if kit.libc.sendmmsg(sock.fileno(), many, 1, FASTOPEN) < 0:
        raise OSError(ctypes.get_errno(), "sendmmsg")


@attempt("deferred connect")
def _() -> None:
    sock = stream()
    sock.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
    sock.connect((PEER, REFUSED))
    sock.send(b"x")


@attempt("connect by io_uring")
def _() -> None:
    ring, sock = kit.Ring(), stream()
    to = kit.ctypes.create_string_buffer(sockaddr4(PEER, REFUSED))
    ring(ring.CONNECT, sock.fileno(), 16, kit.ctypes.addressof(to), 0)


@attempt("socket and connect by io_uring")
def _() -> None:
    ring = kit.Ring()
    sock = ring(ring.SOCKET, socket.AF_INET, socket.SOCK_STREAM, 0, 0)
    to = kit.ctypes.create_string_buffer(sockaddr4(PEER, REFUSED))
    ring(ring.CONNECT, sock, 16, kit.ctypes.addressof(to), 0)


@attempt("multipath")
def _() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
    sock.settimeout(kit.PATIENCE)
    sock.connect((PEER, REFUSED))


@attempt("mapped into IPv6")
def _() -> None:
    stream(socket.AF_INET6).connect((f"::ffff:{PEER}", REFUSED))


@attempt("mapped, with a scope")
def _() -> None:
    connect_raw(stream(socket.AF_INET6), sockaddr6(f"::ffff:{PEER}", REFUSED, 7))


@attempt("a short address of IPv6")
def _() -> None:
    connect_raw(stream(socket.AF_INET6), sockaddr6(f"::ffff:{PEER}", REFUSED)[:24])


@attempt("a long address")
def _() -> None:
    connect_raw(stream(), sockaddr4(PEER, REFUSED, b"rubbish!").ljust(128, b"\xa5"))


@attempt("a long address of IPv6")
def _() -> None:
    connect_raw(stream(socket.AF_INET6), sockaddr6(f"::ffff:{PEER}", REFUSED).ljust(128, b"\xa5"))


@attempt("from a bound port")
def _() -> None:
    sock = stream()
    sock.bind(("0.0.0.0", 0))
    sock.connect((PEER, REFUSED))


@attempt("while it listens no more")
def _() -> None:
    sock = stream()
    sock.bind(("0.0.0.0", 0))
    sock.listen()
    sock.shutdown(socket.SHUT_RDWR)
    connect_raw(sock, bytes(16))
    sock.settimeout(kit.PATIENCE)
    connect_raw(sock, sockaddr4(PEER, REFUSED))


for form in (
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::ffff:127.9.9.9", "::ffff:0.0.0.0",
):  # fmt: skip

    @attempt(f"loopback as {form}")
    def _(form: str = form) -> None:
        stream(socket.AF_INET6 if ":" in form else socket.AF_INET).connect((form, LOCAL))


@attempt("loopback with a scope")
def _() -> None:
    connect_raw(stream(socket.AF_INET6), sockaddr6("::1", LOCAL, 1))


@attempt("loopback from a socket of its own network")
def _() -> None:
    sock = stream()
    sock.bind(("127.0.0.1", 0))
    sock.connect(("127.0.0.1", LOCAL))


def _listening(family: int, host: str, *options: tuple[int, int]) -> None:
    with stream(family) as sock:
        for level, name in options:
            sock.setsockopt(level, name, 1)
        sock.bind((host, PORT))
        sock.listen()


REUSE = (socket.SOL_SOCKET, socket.SO_REUSEPORT), (socket.SOL_SOCKET, socket.SO_REUSEADDR)
ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
for name, family, host, options in (
    ("listen", socket.AF_INET, "0.0.0.0", ()),
    ("listen with SO_REUSEPORT", socket.AF_INET, "0.0.0.0", REUSE),
    ("listen on one address", socket.AF_INET, SITE["host"], ()),
    ("listen on ::", socket.AF_INET6, "::", ()),
    ("listen with IPV6_V6ONLY", socket.AF_INET6, "::", (ONLY,)),
    ("listen with both", socket.AF_INET6, "::", (ONLY, *REUSE)),
    ("listen on a mapped address", socket.AF_INET6, "::ffff:0.0.0.0", ()),
    ("listen on any address by IP_FREEBIND", socket.AF_INET, "198.51.100.77", ((0, 15),)),
):

    @attempt(name)
    def _(family: int = family, host: str = host, options: tuple = options) -> None:
        _listening(family, host, *options)


@attempt("listen by the old spelling of any")
def _() -> None:
    with stream() as sock:
        address = bytes(2) + sockaddr4("0.0.0.0", PORT)[2:]
        if kit.libc.bind(sock.fileno(), address, 16):
            raise OSError(kit.ctypes.get_errno(), "bind")
        sock.listen()


@attempt("listen unbound")
def _() -> None:
    stream().listen()


@attempt("listen after IP_BIND_ADDRESS_NO_PORT")
def _() -> None:
    sock = stream()
    sock.setsockopt(0, 24, 1)
    sock.bind(("0.0.0.0", 0))
    sock.listen()


kit.main()
