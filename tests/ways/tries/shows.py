"""What a guest can see of its host's network: files, queries by netlink, queries of interfaces by a TCP socket."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

import kit
from kit import SITE, attempt, stream

if TYPE_CHECKING:
    from collections.abc import Callable

CARD = SITE["card"].encode()
HOST, GATEWAY = socket.inet_aton(SITE["host"]), socket.inet_aton(SITE["peer"])
DONE, ERROR, REQUEST_DUMP = 3, 2, 0x301


def shown(what: bytes, where: bytes) -> None:
    if what not in where:
        raise PermissionError(1, "not shown")


def text(path: str) -> bytes:
    """What a file says, or what is in a directory."""
    if os.path.isdir(path):
        return "\n".join(os.listdir(path)).encode()
    with open(path, "rb") as file:
        return file.read()


def met() -> None:
    """The gateway is a neighbour, as every peer that was talked to."""
    with stream() as sock:
        sock.connect((SITE["peer"], SITE["allowed"]))


@attempt("shown: /proc/net/arp")
def _() -> None:
    met()
    shown(CARD, text("/proc/net/arp"))


for path in (
    *("/proc/net/dev", "/proc/net/route", "/proc/net/igmp", "/proc/net/dev_mcast"),
    *("/proc/net/if_inet6", "/proc/net/ipv6_route", "/proc/sys/net/ipv4/conf"),
    *("/sys/class/net", f"/proc/{SITE['other']}/net/dev"),
):
    name = path.replace(f"/{SITE['other']}/", "/PID/")
    attempt(f"shown: {name}")(lambda path=path: shown(CARD, text(path)))

for path, port in (("/proc/net/tcp", SITE["local"]), ("/proc/net/udp", SITE["local_udp"])):
    attempt(f"shown: {path}")(
        lambda path=path, port=port: shown(f":{port:04X} 00000000:0000".encode(), text(path))
    )


def dump(protocol: int, kind: int, body: bytes) -> bytes:
    """All that the kernel answers (netlink(7)). Raises OSError."""
    found = b""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as link:
        link.settimeout(kit.PATIENCE)
        link.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST_DUMP, 1, 0) + body)
        while True:
            data = link.recv(1 << 20)
            while len(data) >= 16:
                size, what = struct.unpack_from("=IH", data)
                if what == DONE:
                    return found
                if what == ERROR:
                    raise OSError(-struct.unpack_from("=i", data, 16)[0], "netlink")
                found += data[:size]
                data = data[(size + 3) & ~3 :]


LISTENING, TCP = 1 << 10, 6
PORT = struct.pack("!H", SITE["local"])
for name, what, protocol, kind, body in (
    ("RTM_GETLINK", CARD, 0, 18, bytes(16)),
    ("RTM_GETADDR", HOST, 0, 22, bytes(8)),
    ("RTM_GETROUTE", GATEWAY, 0, 26, bytes(12)),
    ("sock_diag", PORT, 4, 20, struct.pack("=BBBBI48x", 2, TCP, 0, 0, LISTENING)),
):
    attempt(f"shown: {name}")(
        lambda what=what, protocol=protocol, kind=kind, body=body: shown(
            what, dump(protocol, kind, body)
        )
    )


def ask(number: int, rest: bytes = b"", name: bytes = CARD) -> bytes:
    """A query of an interface (netdevice(7)), by a TCP socket, which on the direct path is the host's."""
    with stream() as sock:
        return fcntl.ioctl(sock.fileno(), number, name.ljust(16, b"\0") + rest.ljust(24, b"\0"))


@attempt("shown: SIOCGIFNAME")
def _() -> None:
    found = b""
    for index in range(1, 300):
        try:
            found += ask(0x8910, struct.pack("=i", index), b"")[:16]
        except OSError as error:
            worst = error
    if not found:
        raise worst
    shown(CARD, found)


QUERIES: dict[str, tuple[int, Callable[[bytes], bool]]] = {
    "SIOCGIFADDR": (0x8915, lambda said: HOST in said),
    "SIOCGIFFLAGS": (0x8913, lambda said: True),
    "SIOCGIFINDEX": (0x8933, lambda said: True),
    "SIOCGIFHWADDR": (0x8927, lambda said: True),
    "SIOCGIFMTU": (0x8921, lambda said: True),
    "SIOCGIFTXQLEN": (0x8942, lambda said: True),
}
for name, (number, good) in QUERIES.items():
    attempt(f"shown: {name}")(
        lambda number=number, good=good: shown(b"yes", b"yes" if good(ask(number)) else b"")
    )


@attempt("shown: SIOCETHTOOL")
def _() -> None:
    room = ctypes.create_string_buffer(struct.pack("=II", 0xA, 0))  # ETHTOOL_GLINK
    ask(0x8946, struct.pack("=Q", ctypes.addressof(room)))


@attempt("shown: SIOCGARP")
def _() -> None:
    """The address of the gateway's hardware."""
    met()
    request = kit.sockaddr4(SITE["peer"], 0).ljust(52, b"\0") + CARD.ljust(16, b"\0")
    with stream() as sock:
        fcntl.ioctl(sock.fileno(), 0x8954, request)


kit.main()
