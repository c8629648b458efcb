"""Socket options set before connect hold after it, also towards the program's own loopback."""

from __future__ import annotations

import fcntl
import socket
import struct
from typing import TYPE_CHECKING

from kit import PORTS, Net, both, echo, main, outcome, say

if TYPE_CHECKING:
    from collections.abc import Callable

SOL, TCP, IP, IP6 = (
    socket.SOL_SOCKET,
    socket.IPPROTO_TCP,
    socket.IPPROTO_IP,
    socket.IPPROTO_IPV6,
)
LINGER = struct.pack("ii", 1, 7)
TIMEVAL = struct.pack("qq", 3, 250_000)

# (name, level, option, value); numbers where Python 3.11 has no name (linux/tcp.h, linux/in6.h)
COMMON: list[tuple[str, int, int, int | bytes]] = [
    ("SO_REUSEADDR", SOL, socket.SO_REUSEADDR, 1),
    ("SO_REUSEPORT", SOL, socket.SO_REUSEPORT, 1),
    ("SO_KEEPALIVE", SOL, socket.SO_KEEPALIVE, 1),
    ("SO_OOBINLINE", SOL, socket.SO_OOBINLINE, 1),
    ("SO_BROADCAST", SOL, socket.SO_BROADCAST, 1),
    ("SO_DONTROUTE", SOL, socket.SO_DONTROUTE, 1),
    ("SO_LINGER", SOL, socket.SO_LINGER, LINGER),
    ("SO_RCVTIMEO", SOL, socket.SO_RCVTIMEO, TIMEVAL),
    ("SO_SNDTIMEO", SOL, socket.SO_SNDTIMEO, TIMEVAL),
    ("SO_RCVBUF", SOL, socket.SO_RCVBUF, 40000),
    ("SO_SNDBUF", SOL, socket.SO_SNDBUF, 50000),
    ("SO_RCVLOWAT", SOL, socket.SO_RCVLOWAT, 3),
    ("SO_PRIORITY", SOL, socket.SO_PRIORITY, 5),
    ("SO_TIMESTAMP", SOL, 29, 1),
    ("TCP_NODELAY", TCP, socket.TCP_NODELAY, 1),
    ("TCP_CORK", TCP, socket.TCP_CORK, 1),
    ("TCP_MAXSEG", TCP, socket.TCP_MAXSEG, 900),
    ("TCP_KEEPIDLE", TCP, socket.TCP_KEEPIDLE, 33),
    ("TCP_KEEPINTVL", TCP, socket.TCP_KEEPINTVL, 11),
    ("TCP_KEEPCNT", TCP, socket.TCP_KEEPCNT, 4),
    ("TCP_SYNCNT", TCP, socket.TCP_SYNCNT, 3),
    ("TCP_LINGER2", TCP, socket.TCP_LINGER2, 9),
    ("TCP_DEFER_ACCEPT", TCP, socket.TCP_DEFER_ACCEPT, 2),
    ("TCP_WINDOW_CLAMP", TCP, socket.TCP_WINDOW_CLAMP, 30000),
    ("TCP_USER_TIMEOUT", TCP, socket.TCP_USER_TIMEOUT, 12000),
    ("TCP_NOTSENT_LOWAT", TCP, socket.TCP_NOTSENT_LOWAT, 20000),
    ("TCP_CONGESTION", TCP, socket.TCP_CONGESTION, b"reno"),
]
PER_VERSION: dict[int, list[tuple[str, int, int, int | bytes]]] = {
    4: [
        ("IP_TOS", IP, socket.IP_TOS, 0x10),
        ("IP_TTL", IP, socket.IP_TTL, 55),
        ("IP_MTU_DISCOVER", IP, 10, 0),
        ("IP_RECVERR", IP, 11, 1),
        ("IP_BIND_ADDRESS_NO_PORT", IP, 24, 1),
        ("IP_MINTTL", IP, 21, 2),
    ],
    6: [
        ("IPV6_V6ONLY", IP6, socket.IPV6_V6ONLY, 1),
        ("IPV6_UNICAST_HOPS", IP6, socket.IPV6_UNICAST_HOPS, 44),
        ("IPV6_TCLASS", IP6, socket.IPV6_TCLASS, 0x20),
        ("IPV6_RECVTCLASS", IP6, socket.IPV6_RECVTCLASS, 1),
        ("IPV6_MTU_DISCOVER", IP6, 23, 0),
        ("IPV6_RECVERR", IP6, 25, 1),
        ("IPV6_DONTFRAG", IP6, 62, 1),
        ("IPV6_AUTOFLOWLABEL", IP6, 70, 0),
        ("IP_TTL", IP, socket.IP_TTL, 55),
    ],
}
# Set on a connecting socket these change what connecting means, so they are tried on their own.
ALONE = {"SO_DONTROUTE", "SO_REUSEPORT"}


def value_of(sock: socket.socket, level: int, option: int, like: int | bytes) -> object:
    if isinstance(like, int):
        return outcome(sock.getsockopt, level, option)
    try:
        return sock.getsockopt(level, option, 16).rstrip(b"\0").hex()
    except OSError as error:
        return error.errno


def every(net: Net) -> list[tuple[str, int, int, int | bytes]]:
    return COMMON + PER_VERSION[net.version]


def with_options(net: Net, connect: Callable[[socket.socket], object]) -> None:
    sock = net.socket()
    chosen = [entry for entry in every(net) if entry[0] not in ALONE]
    for title, level, option, value in chosen:
        say(f"set {title}", outcome(sock.setsockopt, level, option, value), "ok")
    before = {e[0]: value_of(sock, e[1], e[2], e[3]) for e in chosen}
    say("connect", connect(sock), "ok")
    after = {e[0]: value_of(sock, e[1], e[2], e[3]) for e in chosen}
    for title in before:
        say(title, [before[title], after[title]])


@both
def kept_to_the_world(net: Net) -> None:
    with_options(net, lambda sock: outcome(sock.connect, (net.peer, PORTS["echo"])))


@both
def kept_to_loopback(net: Net) -> None:
    listener = net.listener(net.loop)
    with_options(net, lambda sock: outcome(sock.connect, listener.getsockname()))


@both
def kept_alone(net: Net) -> None:
    for title, level, option, value in every(net):
        for place in ("world", "loopback"):
            listener = net.listener(net.loop)
            sock = net.socket()
            outcome(sock.setsockopt, level, option, value)
            where = (net.peer, PORTS["echo"]) if place == "world" else listener.getsockname()
            # An unscoped route is no neighbour's: DONTROUTE still reaches one on the link.
            connected = outcome(sock.connect, where)
            say(f"{title} to {place}", [connected, value_of(sock, level, option, value)])
            sock.close()
            listener.close()


@both
def kept_by_bind(net: Net) -> None:
    """Options set before a bind, to the wildcard and to loopback."""
    for host in (net.any, net.loop):
        sock = net.socket()
        chosen = [entry for entry in every(net) if entry[0] not in ALONE]
        for _, level, option, value in chosen:
            outcome(sock.setsockopt, level, option, value)
        say(f"bind {host}", outcome(sock.bind, (host, 0)), "ok")
        say(f"listen {host}", outcome(sock.listen), "ok")
        for title, level, option, value in chosen:
            say(f"{title} after {host}", value_of(sock, level, option, value))


@both
def defaults(net: Net) -> None:
    """What a fresh socket has; then connected to the world and to loopback."""
    listener = net.listener(net.loop)
    fresh, world, loopback = net.socket(), net.socket(), net.socket()
    world.connect((net.peer, PORTS["echo"]))
    loopback.connect(listener.getsockname())
    dynamic = {"TCP_MAXSEG", "SO_RCVBUF", "SO_SNDBUF", "TCP_WINDOW_CLAMP", "TCP_CONGESTION"}
    for title, level, option, value in every(net):
        for place, sock in (("fresh", fresh), ("world", world), ("loopback", loopback)):
            if title in dynamic and place != "fresh":
                continue  # tuned by the route and by the first packets
            if title == "TCP_WINDOW_CLAMP":
                continue
            say(f"{title} {place}", value_of(sock, level, option, value))


@both
def changed_after(net: Net) -> None:
    """Options set on a connected socket."""
    sock = net.far("echo")
    for title, level, option, value in every(net):
        result = outcome(sock.setsockopt, level, option, value)
        say(title, [result, value_of(sock, level, option, value)])
    sock.setsockopt(TCP, socket.TCP_CORK, 0)
    sock.setsockopt(SOL, socket.SO_RCVLOWAT, 1)
    say("echo", echo(sock), "hello")


@both
def not_permitted(net: Net) -> None:
    """What an ordinary user may not set, and what does not exist."""
    sock = net.socket()
    for title, level, option, value in [
        ("SO_MARK", SOL, 36, 1),
        ("SO_PRIORITY 7", SOL, socket.SO_PRIORITY, 7),
        ("SO_DEBUG", SOL, socket.SO_DEBUG, 1),
        ("SO_RCVBUFFORCE", SOL, 33, 100000),
        ("SO_SNDBUFFORCE", SOL, 32, 100000),
        ("IP_TRANSPARENT", IP, 19, 1),
        ("TCP_REPAIR", TCP, 19, 1),
        ("TCP_SYNCNT 0", TCP, socket.TCP_SYNCNT, 0),
        ("TCP_KEEPIDLE 0", TCP, socket.TCP_KEEPIDLE, 0),
        ("TCP_MAXSEG 1", TCP, socket.TCP_MAXSEG, 1),
        ("no such option", SOL, 9999, 1),
        ("no such TCP option", TCP, 9999, 1),
        ("no such level", 9999, 1, 1),
        ("SO_TYPE", SOL, socket.SO_TYPE, 1),
        ("SO_ERROR", SOL, socket.SO_ERROR, 1),
    ]:
        say(title, outcome(sock.setsockopt, level, option, value))
    say("get no such option", outcome(sock.getsockopt, SOL, 9999))
    say("get no such TCP option", outcome(sock.getsockopt, TCP, 9999))
    say("get no such level", outcome(sock.getsockopt, 9999, 1))
    say("short value", outcome(sock.setsockopt, SOL, socket.SO_KEEPALIVE, b"\1"), "EINVAL")
    say("congestion", outcome(sock.setsockopt, TCP, socket.TCP_CONGESTION, b"nonsense"))


@both
def information(net: Net) -> None:
    """TCP_INFO's state: closed, established, close-wait."""
    fresh = net.socket()
    say("fresh", fresh.getsockopt(TCP, socket.TCP_INFO, 1)[0], 7)
    sock = net.far("echo")
    say("connected", sock.getsockopt(TCP, socket.TCP_INFO, 1)[0], 1)
    listener = net.listener()
    say("listening", listener.getsockopt(TCP, socket.TCP_INFO, 1)[0], 10)
    bound = net.socket()
    bound.bind((net.loop, 0))
    say("bound", bound.getsockopt(TCP, socket.TCP_INFO, 1)[0], 7)


@both
def flags_kept(net: Net) -> None:
    """Descriptor and file flags survive connect, towards the world and loopback."""
    listener = net.listener(net.loop)
    for place, where in (("world", (net.peer, PORTS["echo"])), ("loop", listener.getsockname())):
        for flags in (0, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK, 0o2004000):
            sock = socket.socket(net.family, socket.SOCK_STREAM | flags)
            fcntl.fcntl(sock, fcntl.F_SETFD, fcntl.FD_CLOEXEC if flags & 0o2000000 else 0)
            fcntl.fcntl(sock, fcntl.F_SETFL, fcntl.fcntl(sock, fcntl.F_GETFL) | 0o20000)
            before = [fcntl.fcntl(sock, fcntl.F_GETFD), fcntl.fcntl(sock, fcntl.F_GETFL)]
            outcome(sock.connect, where)
            after = [fcntl.fcntl(sock, fcntl.F_GETFD), fcntl.fcntl(sock, fcntl.F_GETFL)]
            say(f"{place} {flags:o}", [before == after, before])


main()
