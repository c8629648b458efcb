"""The guest's filter, asked about calls one by one: what is allowed, reported, refused, and how."""

from __future__ import annotations

import errno
import socket

import pytest
from bpfkit import verdict

from xensock import _core
from xensock.supervisor import filter as guest_filter

DIRECT, RELAY = guest_filter.build(True), guest_filter.build(False)
ALLOW, NOTIFY, KILL = guest_filter.ALLOW, guest_filter.NOTIFY, guest_filter.KILL
FASTOPEN = 0x20000000
CLOEXEC = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK


def refused(error: int) -> int:
    return guest_filter.ERRNO | error


def ask(program: bytes, name: str, *arguments: int) -> int:
    return verdict(program, _core.SYS[name], arguments, _core.AUDIT_ARCH)


both = pytest.mark.parametrize("program", [DIRECT, RELAY], ids=["direct", "relay"])


@both
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("protocol", [0, socket.IPPROTO_TCP])
@pytest.mark.parametrize("flags", [0, CLOEXEC])
def test_stream_sockets(program: bytes, family: int, protocol: int, flags: int) -> None:
    expected = NOTIFY if program is DIRECT else ALLOW
    assert ask(program, "socket", family, socket.SOCK_STREAM | flags, protocol) == expected


@both
def test_families_that_do_not_exist(program: bytes) -> None:
    kept = {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET}
    for family in set(range(-1, 64)) - kept:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
            assert ask(program, "socket", family, kind, 0) == refused(errno.EAFNOSUPPORT), family


@both
@pytest.mark.parametrize(
    ("family", "kind", "protocol", "error"),
    [
        (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP, errno.EPERM),
        (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_TCP, errno.EPERM),
        (socket.AF_PACKET, socket.SOCK_RAW, 0x300, errno.EPERM),
        (socket.AF_INET, socket.SOCK_STREAM, 262, errno.EPROTONOSUPPORT),  # MPTCP
        (socket.AF_INET, socket.SOCK_STREAM, 132, errno.EPROTONOSUPPORT),  # SCTP
        (socket.AF_INET, socket.SOCK_SEQPACKET, 132, errno.ESOCKTNOSUPPORT),
        (socket.AF_INET, socket.SOCK_DGRAM, 136, errno.EPROTONOSUPPORT),  # UDP-Lite
        (socket.AF_INET, socket.SOCK_STREAM | 0x100, 0, errno.EINVAL),
        (socket.AF_NETLINK, socket.SOCK_RAW, 12, errno.EPROTONOSUPPORT),  # netfilter
    ],
)
def test_sockets_that_are_refused(
    program: bytes, family: int, kind: int, protocol: int, error: int
) -> None:
    assert ask(program, "socket", family, kind, protocol) == refused(error)


@both
def test_sockets_that_stay_the_guests_own(program: bytes) -> None:
    assert ask(program, "socket", socket.AF_UNIX, socket.SOCK_STREAM, 0) == ALLOW
    assert ask(program, "socket", socket.AF_INET, socket.SOCK_DGRAM | CLOEXEC, 0) == ALLOW
    assert ask(program, "socket", socket.AF_NETLINK, socket.SOCK_RAW, 0) == ALLOW


@both
@pytest.mark.parametrize("name", ["connect", "bind", "listen"])
def test_calls_that_the_backend_carries_out(program: bytes, name: str) -> None:
    assert ask(program, name, 3, 0x7FFF0000, 16) == NOTIFY


@both
@pytest.mark.parametrize(("name", "at"), [("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)])
def test_fast_open_is_refused_in_any_company(program: bytes, name: str, at: int) -> None:
    for others in (0, socket.MSG_NOSIGNAL, 0x7FFFFFFF):
        arguments = [5, 0x7F00, 0, 0, 0, 0]
        arguments[at] = others | FASTOPEN
        assert ask(program, name, *arguments) == refused(errno.EOPNOTSUPP)
        arguments[at] = others & ~FASTOPEN
        assert ask(program, name, *arguments) == ALLOW


@both
@pytest.mark.parametrize("name", ["io_uring_setup", "io_uring_enter", "io_uring_register"])
def test_io_uring_does_not_exist(program: bytes, name: str) -> None:
    assert ask(program, name, 8, 0) == refused(errno.ENOSYS)


@both
@pytest.mark.parametrize("name", ["read", "write", "recvfrom", "recvmsg", "accept", "accept4"])
def test_what_moves_data_is_not_looked_at(program: bytes, name: str) -> None:
    assert ask(program, name, 3, 0x7FFF0000, 1 << 20) == ALLOW


@both
def test_foreign_programs_end(program: bytes) -> None:
    assert verdict(program, 42, (), 0x40000003) == KILL  # i386
    if _core.AUDIT_ARCH == 0xC000003E:
        assert verdict(program, 42 | 0x40000000, (), _core.AUDIT_ARCH) == KILL  # x32


@both
@pytest.mark.parametrize(
    ("level", "option"),
    [
        (socket.SOL_SOCKET, socket.SO_REUSEADDR),
        (socket.SOL_SOCKET, socket.SO_REUSEPORT),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        (socket.SOL_SOCKET, socket.SO_LINGER),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        (socket.IPPROTO_IP, socket.IP_TOS),
        (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY),
        (socket.IPPROTO_UDP, 103),
    ],
)
def test_options_a_program_may_set(program: bytes, level: int, option: int) -> None:
    assert ask(program, "setsockopt", 3, level, option, 0, 4) == ALLOW


@both
@pytest.mark.parametrize(
    ("level", "option"),
    [
        (socket.SOL_SOCKET, socket.SO_BINDTODEVICE),
        (socket.SOL_SOCKET, socket.SO_MARK),
        (socket.SOL_SOCKET, 62),  # SO_BINDTOIFINDEX
        (socket.IPPROTO_IP, 4),  # IP_OPTIONS: source routes
        (socket.IPPROTO_IP, 19),  # IP_TRANSPARENT
        (socket.IPPROTO_IP, 50),  # IP_UNICAST_IF
        (socket.IPPROTO_TCP, 19),  # TCP_REPAIR
        (socket.IPPROTO_TCP, 30),  # TCP_FASTOPEN_CONNECT
        (socket.IPPROTO_TCP, 31),  # TCP_ULP
        (socket.IPPROTO_IPV6, socket.IPV6_RTHDR),
        (socket.IPPROTO_IPV6, 50),  # IPV6_PKTINFO
        (
            socket.IPPROTO_IPV6,
            6,
        ),  # IPV6_2292PKTOPTIONS: routing headers, addresses and interfaces as messages
        (socket.SOL_SOCKET, 1000),
        (4711, 1),
    ],
)
def test_options_that_would_lead_around_are_errors(program: bytes, level: int, option: int) -> None:
    answer = ask(program, "setsockopt", 3, level, option, 0, 4)
    assert answer in (refused(errno.EPERM), refused(errno.ENOPROTOOPT))


@both
def test_interface_requests(program: bytes) -> None:
    assert ask(program, "ioctl", 3, 0x8912) == NOTIFY  # SIOCGIFCONF
    assert ask(program, "ioctl", 3, 0x894C) == refused(errno.EPERM)  # SIOCGSKNS
    assert ask(program, "ioctl", 3, 0x8B01) == refused(errno.EOPNOTSUPP)  # wireless
    assert ask(program, "ioctl", 1, 0x5413) == ALLOW  # TIOCGWINSZ
    assert ask(program, "ioctl", 1, 0x541B) == ALLOW  # FIONREAD
    for request in (0x5412, 0x541C):  # TIOCSTI, TIOCLINUX
        assert ask(program, "ioctl", 1, request) == refused(errno.EPERM)
        assert ask(program, "ioctl", 1, request | 7 << 32) == refused(errno.EPERM)


@both
def test_unknown_calls_are_allowed_and_the_upper_half_of_an_int_is_ignored(
    program: bytes,
) -> None:
    assert verdict(program, 9999, (), _core.AUDIT_ARCH) == ALLOW
    high = 0xFFFF_FFFF << 32
    assert ask(program, "socket", high | socket.AF_INET, socket.SOCK_RAW, 1) == refused(errno.EPERM)


@both
@pytest.mark.parametrize(
    ("level", "option"),
    [(level, name) for level, names in guest_filter.JOINS.items() for name in names],
)
def test_joining_groups_is_carried_out_by_the_backend(
    program: bytes, level: int, option: int
) -> None:
    assert ask(program, "setsockopt", 3, level, option, 0x7FFF0000, 136) == NOTIFY


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_unix_datagrams_by_choice(direct: bool, own: bool) -> None:
    """Everything else is as it is with them."""
    usual = guest_filter.build(direct, own)
    without = guest_filter.build(direct, own, unix_datagrams=False)
    none = refused(errno.ESOCKTNOSUPPORT)
    for name in ("socket", "socketpair"):
        for flags in (0, CLOEXEC, 0x100):
            for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
                asked = (name, socket.AF_UNIX, kind | flags, 0)
                assert (ask(usual, *asked), ask(without, *asked)) == (ALLOW, none)
            for family in range(-1, 64):
                for kind in range(16):
                    if family == socket.AF_UNIX and kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
                        continue
                    other = (name, family, kind | flags, 0)
                    assert ask(usual, *other) == ask(without, *other)


@both
def test_pairs_are_of_unix_sockets(program: bytes) -> None:
    assert ask(program, "socketpair", socket.AF_UNIX, socket.SOCK_STREAM, 0, 8) == ALLOW
    assert ask(program, "socketpair", 30, socket.SOCK_STREAM, 0, 8) == refused(errno.EOPNOTSUPP)


@both
def test_keys_are_not_asked_of_programs_outside(program: bytes) -> None:
    assert ask(program, "request_key", 8, 8, 0, 0) == ALLOW
    for pointer in (1, 1 << 32):
        assert ask(program, "request_key", 8, 8, pointer, 0) == refused(errno.EPERM)
