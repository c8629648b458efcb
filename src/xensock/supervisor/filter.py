"""The guest's seccomp filter: what it may do itself, what the backend does for it, what it may not do.

The common calls are found by binary search over the call number and never look further; the kernel also remembers
calls that are always allowed (seccomp(2)), so read and write cost nothing. Options are an allow-list: what is not
known here is refused, never ignored.
"""

from __future__ import annotations

import errno

from xensock import _core
from xensock.calls.family import AF_XENSOCK
from xensock.supervisor import bpf

ALLOW = 0x7FFF0000
NOTIFY = 0x7FC00000
KILL = 0x80000000
ERRNO = 0x00050000

MSG_FASTOPEN = 0x20000000
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET = 1, 2, 10, 16, 17
STREAM, DGRAM, RAW = 1, 2, 3
TYPE_BITS = 0xF | 0o2000000 | 0o4000  # SOCK_CLOEXEC, SOCK_NONBLOCK
IPPROTO_TCP, IPPROTO_MPTCP = 6, 262
UDP_LIKE = (0, 17, 1, 58)  # UDP and the two ping sockets
NETLINK = (0, 4, 15, 16)  # ROUTE, SOCK_DIAG, KOBJECT_UEVENT, GENERIC

# Options a guest may set, by level (numbers of asm-generic/socket.h, linux/in.h, linux/in6.h, linux/tcp.h). Left out on
# purpose: SO_BINDTODEVICE, SO_BINDTOIFINDEX, SO_MARK, IP_OPTIONS, IP_TRANSPARENT, IP_UNICAST_IF, IPV6_RTHDR,
# IPV6_PKTINFO, IPV6_UNICAST_IF, IPV6_2292PKTOPTIONS (the two before in another form), TCP_REPAIR*, TCP_ULP,
# TCP_FASTOPEN_CONNECT, TCP_MD5SIG.
OPTIONS: dict[int, frozenset[int]] = {
    1: frozenset(
        {*range(1, 17), 18, 19, 20, 21, 26, 27, 29, *range(32, 36), *range(37, 48), *range(49, 54)}
    )
    | {60, 61, *range(63, 71), 73, 74, 75, 76},
    0: frozenset({1, 2, 3, *range(6, 16), *range(20, 27), *range(32, 50), 51}),
    6: frozenset({*range(1, 14), 16, 17, 18, 23, 24, 25, 26, 27, 28, 33, 34, 35, 36, 37, 44, 45}),
    41: frozenset(
        {
            1,
            2,
            3,
            4,
            5,
            8,
            *range(16, 30),
            33,
            *range(42, 50),
            51,
            52,
            53,
            56,
            58,
            60,
            61,
            62,
            63,
        }
    )
    | {66, 67, 70, 72, 73, 74, 77, 78},
}
# To join a group (IP_ADD_MEMBERSHIP, IP_ADD_SOURCE_MEMBERSHIP, IPV6_JOIN_GROUP, MCAST_JOIN_*), to leave it again, and
# IP_MULTICAST_IF: the backend does it, where the rules allow it. The kernel lets TCP sockets join, too: who holds one
# of the host's would make the host join.
JOINS: dict[int, tuple[int, ...]] = {
    0: (32, 35, 36, 39, 40, 42, 45, 46, 47),
    41: (20, 21, 42, 45, 46, 47),
}
OPEN_LEVELS = (
    17,
    58,
    136,
    255,
    270,
)  # UDP, ICMPv6, UDP-Lite, raw, netlink: sockets that stay the guest's own

TIOCSTI, TIOCLINUX = 0x5412, 0x541C  # typing on the terminal of whoever started the guest
PEER = (17, 77)  # SO_PEERCRED, SO_PEERPIDFD: who connected a unix socket

IOCTL_FIRST, IOCTL_LAST = 0x8910, 0x89FF  # interface queries
WIRELESS_FIRST, WIRELESS_LAST = 0x8B00, 0x8BFF
SIOCGSKNS = 0x894C


def _error(number: int) -> int:
    return ERRNO | number


def build(direct: bool, own_family: bool = False, unix_datagrams: bool = True) -> bytes:
    """The filter as ``struct sock_filter`` bytes. ``direct``: TCP sockets come from the backend already at socket().

    ``own_family``: that concerns AF_XENSOCK alone; AF_INET and AF_INET6 are the guest's own.

    ``unix_datagrams``: whether AF_UNIX has datagram sockets, whose destinations nobody judges; else they are
    ESOCKTNOSUPPORT, as types are that the kernel does not have.
    """
    asm = bpf.Assembler()
    asm.load(bpf.ARCH)
    asm.jump(bpf.JEQ, _core.AUDIT_ARCH, "", "kill")
    asm.load(bpf.NR)
    asm.jump(bpf.JGE, 0x40000000, "kill")  # x32
    blocks = {
        "sendto": "flags3",
        "sendmsg": "flags2",
        "sendmmsg": "flags3",
        "setsockopt": "setsockopt",
        "getsockopt": "getsockopt",
        "socket": "socket",
        "socketpair": "socketpair",
        "request_key": "request_key",
        "connect": "notify",
        "bind": "notify",
        "listen": "notify",
        "ioctl": "ioctl",
        "io_uring_setup": "enosys",
        "io_uring_enter": "enosys",
        "io_uring_register": "enosys",
    }
    _search(asm, sorted((_core.SYS[name], target) for name, target in blocks.items()), "t")
    for name, index in (("flags3", 3), ("flags2", 2)):
        asm.label(name)
        asm.load(bpf.arg(index))
        asm.jump(bpf.JSET, MSG_FASTOPEN, "eopnotsupp", "allow")
    unix = "allow" if unix_datagrams else "unix"
    _socket(asm, unix, direct and not own_family, streams_only=own_family)
    _ioctl(asm)
    _rest(asm, unix)
    if not unix_datagrams:
        _unix(asm)
    _getsockopt(asm)
    _setsockopt(asm)
    for name, value in (
        ("allow", ALLOW),
        ("notify", NOTIFY),
        ("kill", KILL),
        ("enosys", _error(errno.ENOSYS)),
        ("eperm", _error(errno.EPERM)),
        ("einval", _error(errno.EINVAL)),
        ("eopnotsupp", _error(errno.EOPNOTSUPP)),
        ("eafnosupport", _error(errno.EAFNOSUPPORT)),
        ("eprotonosupport", _error(errno.EPROTONOSUPPORT)),
        ("esocktnosupport", _error(errno.ESOCKTNOSUPPORT)),
        ("enoprotoopt", _error(errno.ENOPROTOOPT)),
    ):
        asm.label(name)
        asm.ret(value)
    return asm.assemble()


def _search(asm: bpf.Assembler, table: list[tuple[int, str]], prefix: str) -> None:
    """Binary search of the accumulator in a sorted table; nothing found means allowed."""
    if len(table) <= 2:
        for number, target in table:
            asm.jump(bpf.JEQ, number, target)
        asm.goto("allow")
        return
    middle = len(table) // 2
    asm.jump(bpf.JGE, table[middle][0], prefix + "r")
    _search(asm, table[:middle], prefix + "l")
    asm.label(prefix + "r")
    _search(asm, table[middle:], prefix + "r")


def _one_of(asm: bpf.Assembler, values: tuple[int, ...], yes: str, no: str) -> None:
    for value in values:
        asm.jump(bpf.JEQ, value, yes)
    asm.goto(no)


def _socket(asm: bpf.Assembler, unix: str, direct: bool, streams_only: bool) -> None:
    asm.label("socket")
    asm.load(bpf.arg(0))
    asm.jump(bpf.JEQ, AF_UNIX, unix)
    asm.jump(bpf.JEQ, AF_INET, "inet")
    asm.jump(bpf.JEQ, AF_INET6, "inet")
    asm.jump(bpf.JEQ, AF_NETLINK, "netlink")
    asm.jump(bpf.JEQ, AF_XENSOCK, "xensock")
    asm.jump(bpf.JEQ, AF_PACKET, "eperm", "eafnosupport")
    asm.label("netlink")
    asm.load(bpf.arg(2))
    _one_of(asm, NETLINK, "allow", "eprotonosupport")
    asm.label("inet")
    asm.load(bpf.arg(2))
    asm.jump(bpf.JGT, IPPROTO_MPTCP, "einval")
    asm.load(bpf.arg(1))
    asm.jump(bpf.JSET, ~TYPE_BITS, "einval")
    asm.op(bpf.AND_K, 0xF)
    asm.jump(bpf.JEQ, STREAM, "stream")
    asm.jump(bpf.JEQ, DGRAM, "dgram")
    asm.jump(bpf.JEQ, RAW, "eperm", "esocktnosupport")
    asm.label("stream")
    asm.load(bpf.arg(2))
    _one_of(asm, (0, IPPROTO_TCP), "notify" if direct else "allow", "eprotonosupport")
    asm.label("dgram")
    asm.load(bpf.arg(2))
    _one_of(asm, UDP_LIKE, "allow", "eprotonosupport")
    asm.label("xensock")
    asm.load(bpf.arg(1))
    asm.jump(bpf.JSET, ~TYPE_BITS, "einval")
    asm.op(bpf.AND_K, 0xF)
    asm.jump(bpf.JEQ, STREAM, "xstream")
    if not streams_only:
        asm.jump(bpf.JEQ, DGRAM, "xdgram")
    asm.goto("esocktnosupport")
    asm.label("xstream")
    asm.load(bpf.arg(2))
    _one_of(asm, (0, IPPROTO_TCP), "notify", "eprotonosupport")
    if not streams_only:
        asm.label("xdgram")
        asm.load(bpf.arg(2))
        _one_of(asm, (0, 17), "notify", "eprotonosupport")


def _ioctl(asm: bpf.Assembler) -> None:
    asm.label("ioctl")
    asm.load(bpf.arg(1))
    asm.jump(bpf.JGE, IOCTL_FIRST, "", "other_ioctl")
    asm.jump(bpf.JEQ, SIOCGSKNS, "eperm")
    asm.jump(bpf.JGT, IOCTL_LAST, "", "notify")
    asm.jump(bpf.JGE, WIRELESS_FIRST, "", "allow")
    asm.jump(bpf.JGT, WIRELESS_LAST, "allow", "eopnotsupp")
    asm.label("other_ioctl")
    asm.jump(bpf.JEQ, TIOCSTI, "eperm")
    asm.jump(bpf.JEQ, TIOCLINUX, "eperm", "allow")


def _unix(asm: bpf.Assembler) -> None:
    """Of a pair, too, each end sends wherever it is told to. SOCK_RAW is SOCK_DGRAM by another name."""
    asm.label("unix")
    asm.load(bpf.arg(1))
    asm.op(bpf.AND_K, 0xF)
    asm.jump(bpf.JEQ, DGRAM, "esocktnosupport")
    asm.jump(bpf.JEQ, RAW, "esocktnosupport", "allow")


def _rest(asm: bpf.Assembler, unix: str) -> None:
    asm.label("socketpair")
    asm.load(bpf.arg(0))
    asm.jump(bpf.JEQ, AF_UNIX, unix, "eopnotsupp")
    # With callout information the kernel starts a program of the host's to find the key, one of which asks name servers
    # (request_key(2), request-key.conf(5)).
    asm.label("request_key")
    for half in (0, 4):
        asm.load(bpf.arg(2) + half)
        asm.jump(bpf.JEQ, 0, "", "eperm")
    asm.goto("allow")


def _getsockopt(asm: bpf.Assembler) -> None:
    asm.label("getsockopt")
    asm.load(bpf.arg(1))
    asm.jump(bpf.JEQ, 1, "", "allow")  # SOL_SOCKET
    asm.load(bpf.arg(2))
    _one_of(asm, PEER, "notify", "allow")


def _setsockopt(asm: bpf.Assembler) -> None:
    asm.label("setsockopt")
    asm.load(bpf.arg(1))
    for level in OPTIONS:
        asm.jump(bpf.JEQ, level, f"level{level}")
    _one_of(asm, OPEN_LEVELS, "allow", "enoprotoopt")
    for level, names in OPTIONS.items():
        asm.label(f"level{level}")
        asm.load(bpf.arg(2))
        for name in JOINS.get(level, ()):
            asm.jump(bpf.JEQ, name, "notify")
        for word in range(3):
            mask = sum(1 << (name - 32 * word) for name in names if name // 32 == word)
            asm.jump(bpf.JGE, 32 * (word + 1), f"level{level}w{word}")
            asm.op(bpf.AND_K, 31)
            asm.op(bpf.TAX)
            asm.op(bpf.LD_IMM, mask)
            asm.op(bpf.RSH_X)
            asm.jump(bpf.JSET, 1, "allow", "eperm")
            asm.label(f"level{level}w{word}")
        asm.goto("enoprotoopt")
