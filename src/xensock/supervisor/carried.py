"""Options by which a program shapes what goes over the network: asked of the guest's socket, set on the far side's too.

They are those of socket(7), ip(7), ipv6(7) and tcp(7).
"""

from __future__ import annotations

import contextlib
import errno
import socket

from xensock.supervisor.options import RCVBUF_LOCK, SNDBUF_LOCK, SO_BUF_LOCK

Asked = dict[tuple[int, int], int]  # by level and name

_ANY = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.SOL_SOCKET, socket.SO_PRIORITY),
    (socket.IPPROTO_TCP, socket.TCP_MAXSEG),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
    (socket.IPPROTO_TCP, socket.TCP_SYNCNT),
    (socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
)
_IPV4 = ((socket.IPPROTO_IP, socket.IP_TOS), (socket.IPPROTO_IP, socket.IP_TTL))
_IPV6 = (
    (socket.IPPROTO_IPV6, socket.IPV6_TCLASS),
    (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS),
)
_SIZES = ((socket.SOL_SOCKET, socket.SO_SNDBUF), (socket.SOL_SOCKET, socket.SO_RCVBUF))


def asked_of(guest: socket.socket) -> Asked:
    """What they are at a guest's socket; buffers' sizes where the program chose them. Raises OSError."""
    names = _ANY + _IPV4 + (_IPV6 if guest.family == socket.AF_INET6 else ())
    asked = {name: guest.getsockopt(*name) for name in names}
    try:
        locks = guest.getsockopt(socket.SOL_SOCKET, SO_BUF_LOCK)
    except OSError:
        return asked  # Linux before 5.14 does not tell whether the program chose the sizes
    for bit, name in zip((SNDBUF_LOCK, RCVBUF_LOCK), _SIZES, strict=True):
        if locks & bit:
            # The kernel reports twice what was set (socket(7)).
            asked[name] = guest.getsockopt(*name) // 2
    return asked


class Carrier:
    """Sets them on sockets of one network. From any thread."""

    def __init__(self) -> None:
        self._defaults: dict[int, Asked] = {}

    def carry(self, asked: Asked, far: socket.socket) -> None:
        """Those that are not what a new socket has. Raises OSError."""
        names = _ANY + (_IPV4 if far.family == socket.AF_INET else _IPV6)
        defaults = self._defaults.get(far.family)
        if defaults is None:
            try:
                defaults = {name: far.getsockopt(*name) for name in names}
            except OSError as error:
                if error.errno != errno.ENOPROTOOPT:
                    raise
                return  # a backend of version 1 carries no options
            self._defaults[far.family] = defaults
        for level, option in names:
            value = asked.get((level, option))
            if value is None or value == defaults[level, option]:
                continue
            # A socket that was connected before reports a segment size that cannot be asked for (tcp(7), TCP_MAXSEG).
            with contextlib.suppress(OSError):
                far.setsockopt(level, option, value)
        for level, option in _SIZES:
            if (level, option) in asked:
                far.setsockopt(level, option, asked[level, option])
