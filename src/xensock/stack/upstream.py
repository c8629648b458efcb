"""The stack that is another backend: sockets and names over PV Calls rings."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

from xensock.client.attachment import open_link
from xensock.client.making import create_server
from xensock.client.sockets import socket as OwnSocket

if TYPE_CHECKING:
    import socket

    from xensock.calls.address import IPAddress

RING_ORDER = 7  # 256 KiB each way


class UnreachableError(OSError):
    """Nobody carries out calls there: `backend` is its name, `url` where it should be; the cause is chained."""

    def __init__(self, name: str, url: str, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause))
        self.backend, self.url = name, url


class Upstream:
    """A backend at `url`. Raises ValueError for a URL that cannot be understood, UnreachableError."""

    local = False  # its ports and addresses are another host's, as far as we know

    def __init__(self, name: str, url: str, guest: str) -> None:
        self.name = name
        self.url = url
        try:
            self._link = open_link(url, guest, order=RING_ORDER, splices=True)
        except OSError as error:
            raise UnreachableError(name, url, error) from error

    def make(self, family: int, type: int, protocol: int) -> socket.socket:
        """A socket of the backend's network. Raises OSError: ENETDOWN once the backend is gone."""
        self._check()
        return OwnSocket(family, type & 0xF, protocol, link=self._link)

    def create_server(self, host: str, port: int, family: int, dual: bool) -> socket.socket:
        """A listener at the backend; `dual`: for both families. Raises OSError."""
        self._check()
        return create_server((host, port), family=family, dualstack_ipv6=dual, link=self._link)

    async def query(self, message: bytes, server: IPAddress | None = None) -> bytes:
        """The backend's answer to a DNS message, whatever server the guest asked. Raises OSError."""
        return await asyncio.wrap_future(self._link.name_service().ask(message))

    def _check(self) -> None:
        if self._link.frontend.error is not None:
            raise OSError(errno.ENETDOWN, f"the backend {self.name} is gone")

    def live(self) -> int:
        """Connections under way."""
        return self._link.live()

    def close(self, patience: float = 0) -> None:
        """Leave the backend. What guests sent is delivered; those who still may send get `patience` seconds to end."""
        self._link.finish(patience)
        self._link.close()


def guest_name(name: str) -> str:
    """What a backend is told about who we are, at most 64 bytes."""
    return f"{name}[{os.getpid()}]".encode()[-64:].decode(errors="ignore")
