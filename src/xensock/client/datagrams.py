"""A datagram socket: every packet of its socket pair is a frame (extension datagrams)."""

from __future__ import annotations

import errno
import socket
import struct
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.client.address import failure
from xensock.client.held import Held, State
from xensock.client.link import unwatch
from xensock.client.reports import Reports
from xensock.wire.commands import Attach, Connect, Which
from xensock.wire.extensions import Extension
from xensock.wire.packet_info import IP_RECEIVE, IPV6_RECEIVE

if TYPE_CHECKING:
    from xensock.client.link import Link

_INT = struct.Struct("@i")
UNSPECIFIED = bytes(16)  # AF_UNSPEC: no peer any more


class Datagrams(Held):
    """A UDP, ping or name service socket at the backend. Raises OSError (EOPNOTSUPP) where it does not carry them."""

    def __init__(
        self, link: Link, family: int, protocol: int, end: socket.socket, hops: int = 0
    ) -> None:
        if not link.has(Extension.DATAGRAMS):
            raise failure(errno.ESOCKTNOSUPPORT)
        super().__init__(link, family, socket.SOCK_DGRAM, protocol, end, hops=hops)
        self.informed = link.informed
        self.wanted: set[tuple[int, int]] = set()  # of IP_RECEIVE and IPV6_RECEIVE
        self.reports = Reports(family or socket.AF_INET)  # a name service has no family
        pages = link.frontend.data_ring(link.datagram_order)
        try:
            self.command(Attach(self.id, pages.ref, pages.port))
        except OSError:
            pages.free()
            self.release()
            raise
        self._pages = pages
        unwatch(link.loop, end)
        self._token = link.move(self, end, pages)

    def connect(self, sockaddr: bytes) -> int:
        """connect(2): choose the peer, or none with AF_UNSPEC. An errno."""
        try:
            response = self.command(Connect(self.id, sockaddr or UNSPECIFIED, 0, 0, 0))
        except OSError as error:
            return error.errno or errno.EIO
        self.own = response.address
        self.peer, self.state = sockaddr, State.CONNECTED if sockaddr else State.NEW
        return 0

    @property
    def pings(self) -> bool:
        """Whether it is a ping socket (icmp(7))."""
        return self.protocol in (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)

    def ignores_urgent(self, to: Endpoint | None) -> bool:
        """Whether sending ignores MSG_OOB, as Linux does for addresses of IPv6; elsewhere it is EOPNOTSUPP."""
        if self.family != socket.AF_INET6 or self.pings:
            return False
        where = to or (Endpoint.from_sockaddr(self.peer) if self.peer else None)
        return where is None or where.unmapped().host.version == 6

    def _tells(self, option: tuple[int, int]) -> bool:
        """Whether an option says what control messages come with datagrams: the backend sends all of it."""
        known = IP_RECEIVE | (IPV6_RECEIVE if self.family == socket.AF_INET6 else frozenset())
        return self.informed and option in known

    def set_option(self, level: int, name: int, value: bytes) -> None:
        """See Held."""
        if not self._tells((level, name)):
            super().set_option(level, name, value)
            self.reports.switched((level, name), value)
        elif not value or (level == socket.IPPROTO_IPV6 and len(value) < _INT.size):
            raise failure(errno.EINVAL)
        elif any(value[: _INT.size]):
            self.wanted.add((level, name))
        else:
            self.wanted.discard((level, name))

    def get_option(self, level: int, name: int, length: int) -> bytes:
        """See Held."""
        if not self._tells((level, name)):
            return super().get_option(level, name, length)
        return _INT.pack((level, name) in self.wanted)[:length]

    def name(self, which: Which) -> bytes:
        """See Held. The own address of a socket that was never bound comes with its first datagram."""
        if which == Which.OWN:
            self.own = b""
        return super().name(which)
