"""Socket options carried from one socket to another that takes its place."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SO_BUF_LOCK = 72  # Linux 5.14: which buffer sizes were set by hand
SNDBUF_LOCK, RCVBUF_LOCK = 1, 2
F_SETSIG, F_GETSIG = 10, 11
SO_BINDTOIFINDEX = 62  # Linux 5.1
TCP_REPAIR, TCP_REPAIR_OFF = 19, -1  # -1: off, without the window probe that 0 sends
FREEBIND4 = (socket.IPPROTO_IP, 15)
FREEBIND6 = (socket.IPPROTO_IPV6, 78)

# Options whose value is plain bytes and means the same on a fresh socket (socket(7), ip(7), ipv6(7), tcp(7)).
# Every option that the filter lets a guest change is here but socket filters, which are programs, and TCP_FASTOPEN_KEY,
# which shows the network's own where none is set. SO_PRIORITY comes last, because IP_TOS sets it too.
PLAIN = (
    *(
        (socket.SOL_SOCKET, n)
        for n in (
            *(
                1,
                2,
                5,
                6,
                9,
                10,
                11,
                13,
                15,
                18,
                20,
                21,
                29,
                35,
                37,
                40,
                41,
                42,
                43,
                45,
                46,
                47,
                49,
            ),
            *(60, 63, 64, 65, 69, 70, 73, 74, 75),
        )
    ),
    *(
        (socket.IPPROTO_TCP, n)
        for n in (
            *(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 16, 17, 18, 23, 24, 25, 27, 34, 36, 37),
            *(44, 45),
        )
    ),
    *(
        (socket.IPPROTO_IP, n)
        for n in (1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 20, 21, 23, 24, 25, 26, 33, 34, 49, 51)
    ),
    *(
        (socket.IPPROTO_IPV6, n)
        for n in (
            *(2, 3, 4, 5, 8, 16, 18, 19, 23, 25, 26, 29, 33, 49, 51, 53, 56, 58, 60, 62, 66, 67),
            *(70, 72, 73, 74, 77, 78),
        )
    ),
    (socket.SOL_SOCKET, 12),
)


def copy(old: socket.socket, new: socket.socket) -> None:
    """Set on `new` whatever differs on `old`, then the file's flags (O_NONBLOCK, O_ASYNC with owner and signal)."""
    for level, name in PLAIN:
        if level == socket.IPPROTO_IPV6 and old.family != socket.AF_INET6:
            continue
        try:
            value = old.getsockopt(level, name, 64)
            if value == new.getsockopt(level, name, 64):
                continue
            new.setsockopt(level, name, value)
        except OSError:
            continue  # an option that this kernel, or a socket in this state, does not have
    _copy_buffers(old, new)
    _copy_flags(old.fileno(), new.fileno())


def is_bound(sock: socket.socket, make: Callable[[int, int, int], socket.socket]) -> bool:
    """Whether a TCP socket is bound, which getsockname(2) does not tell: after a connection attempt that failed it goes
    on showing the port that the attempt had.

    `make` makes sockets of the same network. Such a one takes a port; to bind that port again fails, with EINVAL if
    the socket has a port of its own already, with EADDRINUSE otherwise (inet_bind in net/ipv4/af_inet.c).
    """
    if not sock.getsockname()[1]:
        return False
    loopback = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
    with make(sock.family, socket.SOCK_STREAM, 0) as taken:
        taken.bind((loopback, 0))
        try:
            sock.bind(taken.getsockname())
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def unpaced(sock: socket.socket) -> None:
    """Have a TCP socket whose peer is on this machine send as fast as it is read: no BBR, which paces by timers.

    tcp(7), TCP_CONGESTION; Reno is in every kernel and open to all users. What it accepts inherits that.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")


def freebind(family: int) -> tuple[int, int]:
    """IP_FREEBIND or IPV6_FREEBIND (ip(7)): a socket may be bound to an address that no interface has."""
    return FREEBIND6 if family == socket.AF_INET6 else FREEBIND4


def bind_anywhere(
    sock: socket.socket, address: tuple[str, int] | tuple[str, int, int, int]
) -> None:
    """bind(2) to an address that no interface has, which freebind permits; as before afterwards."""
    with temporarily(sock, *freebind(sock.family)):
        sock.bind(address)


def bind_beside(sock: socket.socket, address: tuple[str, int] | tuple[str, int, int, int]) -> None:
    """As bind_anywhere, and to a port that others have too: a TCP socket in repair mode may share it with anybody
    (SK_FORCE_REUSE in net/ipv4/tcp.c). SO_REUSEADDR, which that mode changes, is as before afterwards.

    Needs CAP_NET_ADMIN over the socket's network.
    """
    try:
        bind_anywhere(sock, address)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        try:
            bind_anywhere(sock, address)
        finally:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, TCP_REPAIR_OFF)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)


@contextmanager
def temporarily(sock: socket.socket, level: int, name: int, value: int = 1) -> Iterator[None]:
    """Set a flag, or a number, of a socket for a while."""
    before = sock.getsockopt(level, name)
    sock.setsockopt(level, name, value)
    try:
        yield
    finally:
        sock.setsockopt(level, name, before)


def _copy_buffers(old: socket.socket, new: socket.socket) -> None:
    try:
        locks = old.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
    except OSError:
        locks = 0
    for bit, name in ((SNDBUF_LOCK, socket.SO_SNDBUF), (RCVBUF_LOCK, socket.SO_RCVBUF)):
        if locks & bit:
            # The kernel reports twice what was set (socket(7)).
            new.setsockopt(socket.SOL_SOCKET, name, old.getsockopt(socket.SOL_SOCKET, name) // 2)


def _copy_flags(old: int, new: int) -> None:
    flags = fcntl.fcntl(old, fcntl.F_GETFL)
    if flags & os.O_ASYNC:
        fcntl.fcntl(new, fcntl.F_SETOWN, fcntl.fcntl(old, fcntl.F_GETOWN))
        fcntl.fcntl(new, F_SETSIG, fcntl.fcntl(old, F_GETSIG))
    fcntl.fcntl(new, fcntl.F_SETFL, flags)
