"""A datagram socket: every packet of its socket pair is a frame (extension datagrams)."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from xensock.client.address import failure
from xensock.client.held import Held, State
from xensock.client.link import unwatch
from xensock.wire.commands import Attach, Connect, Which
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from xensock.client.link import Link

UNSPECIFIED = bytes(16)  # AF_UNSPEC: no peer any more


class Datagrams(Held):
    """A UDP, ping or name service socket at the backend. Raises OSError (EOPNOTSUPP) where it does not carry them."""

    def __init__(
        self, link: Link, family: int, protocol: int, end: socket.socket, hops: int = 0
    ) -> None:
        if not link.has(Extension.DATAGRAMS):
            raise failure(errno.ESOCKTNOSUPPORT)
        super().__init__(link, family, socket.SOCK_DGRAM, protocol, end, hops=hops)
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

    def name(self, which: Which) -> bytes:
        """See Held. The own address of a socket that was never bound comes with its first datagram."""
        if which == Which.OWN:
            self.own = b""
        return super().name(which)
