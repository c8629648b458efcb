"""SOCKET: the host's socket is made at once, so that options set early apply to it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from xensock.pvcalls.serving import datagrams, resolving
from xensock.pvcalls.serving.call import UnsupportedError
from xensock.pvcalls.serving.held import Held, Phase
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.wire.requests import Socket

IPPROTO_DNS = 53  # the protocol number of a SOCKET that resolves names (extension resolve)


def socket_(guest: Guest, call: Call, request: Socket) -> None:
    """Make a socket. v1 has AF_INET streams of protocol 0; for the rest the answer is ENOTSUP."""
    guest.check_room(request.id)
    guest.keep(guest.add(_make(guest, request)))
    call.answer()


def _make(guest: Guest, request: Socket) -> Held:
    family, kind, protocol = request.domain, request.type, request.protocol
    has = guest.extensions.__contains__
    inet = family == socket.AF_INET or (family == socket.AF_INET6 and has(Extension.IPV6))
    if kind == socket.SOCK_STREAM:
        # 6 is TCP said otherwise; whoever has options may as well say it.
        tcp = protocol == 0 or (protocol == socket.IPPROTO_TCP and has(Extension.OPTIONS))
        if (inet and tcp) or (family == socket.AF_UNIX and protocol == 0 and has(Extension.UNIX)):
            return _open(guest, request, Phase.FRESH)
    elif kind == socket.SOCK_DGRAM and has(Extension.DATAGRAMS):
        if inet and protocol in (0, socket.IPPROTO_UDP, socket.IPPROTO_UDPLITE):
            return _open(guest, request, Phase.DATAGRAMS)
        if inet and protocol == datagrams.echo_protocol(family) and has(Extension.ICMP_ECHO):
            return _open(guest, request, Phase.DATAGRAMS)
        if family == 0 and protocol == IPPROTO_DNS and has(Extension.RESOLVE):
            return resolving.make(guest, request)
    raise UnsupportedError


def _open(guest: Guest, request: Socket, phase: Phase) -> Held:
    family, kind = request.domain, request.type
    sock = socket.socket(family, kind, request.protocol)
    sock.setblocking(False)
    if kind == socket.SOCK_STREAM and Extension.OPTIONS not in guest.extensions:
        # Servers set this first of all, as their port may be that of ended connections; here nobody can.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return Held(guest, request.id, family, kind, request.protocol, sock, phase, hops=request.hops)
