"""GETNAME, SETOPT and GETOPT: the addresses of a socket, and the options that a guest may touch.

Options that only concern the guest's side (timeouts, low-water marks of its own reads) are the
frontend's business and not here. What the lists do not have is ENOPROTOOPT, as for the kernel an option
that it does not know.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import TYPE_CHECKING

from xensock.pvcalls.serving.addresses import own_name, peer_name
from xensock.pvcalls.serving.held import Phase
from xensock.pvcalls.serving.limits import refuse
from xensock.transport.base import GrantError
from xensock.wire.extensions import Extension
from xensock.wire.requests import OPTION, Which

if TYPE_CHECKING:
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held
    from xensock.wire.requests import GetName, GetOption, SetOption

_SOCKET, _TCP, _IP, _IPV6 = (
    socket.SOL_SOCKET,
    socket.IPPROTO_TCP,
    socket.IPPROTO_IP,
    socket.IPPROTO_IPV6,
)
# socket(7): reuseaddr broadcast sndbuf rcvbuf keepalive oobinline priority reuseport max_pacing_rate
# tcp(7): nodelay maxseg cork keepidle keepintvl keepcnt syncnt linger2 defer_accept window_clamp
#         quickack congestion user_timeout notsent_lowat
# ip(7): tos ttl mtu_discover recverr bind_address_no_port multicast_ttl multicast_loop
# ipv6(7): unicast_hops multicast_hops multicast_loop mtu_discover recverr v6only tclass
SETTABLE = frozenset(
    (level, name)
    for level, names in {
        _SOCKET: (2, 6, 7, 8, 9, 10, 12, 15, 47),
        _TCP: (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 18, 25),
        _IP: (1, 2, 10, 11, 24, 33, 34),
        _IPV6: (16, 18, 19, 23, 25, 26, 67),
    }.items()
    for name in names
)
# And to read: type acceptconn protocol domain; tcp_info; the paths' MTUs.
READABLE = SETTABLE | {
    *((_SOCKET, name) for name in (3, 30, 38, 39)),
    (_TCP, 11),
    (_IP, 14),
    (_IPV6, 24),
}
LINGER = (_SOCKET, socket.SO_LINGER)
INLINE = (_SOCKET, socket.SO_OOBINLINE)
ERROR = (_SOCKET, socket.SO_ERROR)
LONGEST = 1024  # bytes of an option's value
_LINGER = struct.Struct("=ii")


def _with_socket(guest: Guest, id: int) -> Held:
    """A socket that has one of the host behind it. Raises OSError: EBADF, EOPNOTSUPP."""
    held = guest.held(id)
    if held.sock is None and held.joined is not None:
        held.sock = _stand_in(held)
    if held.sock is None:
        raise refuse(errno.EOPNOTSUPP)
    return held


def _stand_in(held: Held) -> socket.socket:
    """A socket for the options of an accepted one that the kernel has none for, with its listener's."""
    sock = socket.socket(held.family, held.kind)
    parent = held.parent.sock if held.parent is not None else None
    if parent is None:
        return sock
    for level, name in SETTABLE:
        with contextlib.suppress(OSError):
            value = parent.getsockopt(level, name, 64)
            if value != sock.getsockopt(level, name, 64):
                sock.setsockopt(level, name, value)
    return sock


def get_name(guest: Guest, call: Call, request: GetName) -> None:
    """The own address, or the peer's."""
    held = guest.held(request.id)
    if held.sock is None and held.joined is None:
        raise refuse(errno.EOPNOTSUPP)
    if request.which == Which.OWN:
        name = own_name(held)
    elif request.which == Which.PEER:
        if held.phase not in (Phase.CONNECTED, Phase.DATAGRAMS):
            raise refuse(errno.ENOTCONN)
        name = peer_name(held)
    else:
        raise refuse(errno.EINVAL)
    call.send(call.response().with_address(name))


def set_option(guest: Guest, call: Call, request: SetOption) -> None:
    """setsockopt(2)."""
    held = _with_socket(guest, request.id)
    option = (request.level, request.name)
    if option == LINGER:
        if len(request.value) < _LINGER.size:
            raise refuse(errno.EINVAL)
        on, seconds = _LINGER.unpack_from(request.value)
        held.linger = seconds if on else None
        guest.keep(held)
    elif option in SETTABLE and not _is_frontends(held, option):
        held.host.setsockopt(request.level, request.name, request.value)
    else:
        raise refuse(errno.ENOPROTOOPT)
    call.answer()


def get_option(guest: Guest, call: Call, request: GetOption) -> None:
    """getsockopt(2), into the response or, as far as it is longer, into a page of the guest."""
    held = _with_socket(guest, request.id)
    room = min(request.length, LONGEST if request.ref else OPTION)
    option = (request.level, request.name)
    value = _value(held, option, room)[:room]
    if request.ref:
        try:
            with guest.transport.map((request.ref,)) as page:
                page[: len(value)] = value
        except GrantError as error:
            raise refuse(error.errno) from error
        call.send(call.response().with_length(len(value)))
    else:
        call.send(call.response().with_value(value))
    if option == ERROR and held.error:
        # It was told. Who is killed before this is noted tells it twice rather than never.
        held.error = 0
        guest.keep(held)


def _is_frontends(held: Held, option: tuple[int, int]) -> bool:
    """Whether it is the frontend's own affair: where a ring marks urgent bytes, how they are read is."""
    urgent = Extension.URGENT in held.guest.extensions
    return option == INLINE and held.kind == socket.SOCK_STREAM and urgent


def _value(held: Held, option: tuple[int, int], room: int) -> bytes:
    if option == LINGER:
        return _LINGER.pack(held.linger is not None, held.linger or 0)
    if option == ERROR:
        # The mover reads the connection's errors, and the ring tells them; here is what came before.
        return struct.pack("=i", held.error)
    if option not in READABLE or _is_frontends(held, option):
        raise refuse(errno.ENOPROTOOPT)
    return held.host.getsockopt(*option, room) if room else b""
