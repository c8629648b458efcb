"""Connections that a rule sends elsewhere: to another address, or a unix socket of the host.

The guest's socket keeps the peer that it asked for. Its own name is one on the loopback, as of connections to the
name service: at the far side there is another one, or none.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from xensock import _core
from xensock.pvcalls.serving import moving, strictly
from xensock.pvcalls.serving.asking import loopback_name
from xensock.pvcalls.serving.attempt import Way
from xensock.pvcalls.serving.held import Joined

if TYPE_CHECKING:
    from xensock.calls.address import Endpoint
    from xensock.pvcalls.serving.held import Held


class Far:
    """The far side of one connection, while it is made."""

    def __init__(self, held: Held, asked: Endpoint, to: Endpoint | str, terms: object) -> None:
        self._terms = terms
        self._held = held
        self._asked = asked
        self._to = to
        self._sock: socket.socket | None = None

    @property
    def way(self) -> Way:
        """How to connect there."""
        return Way(lambda sock: self._start(), self._move, waits=True)

    def close(self) -> None:
        """The attempt is over; what was moved belongs to the mover."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _start(self) -> int:
        """0, the errno of connect(2), or EAGAIN while it is under way."""
        if self._sock is None:
            family = socket.AF_UNIX if isinstance(self._to, str) else self._to.family
            self._sock = socket.socket(family, socket.SOCK_STREAM)
            self._sock.setblocking(False)
        if isinstance(self._to, str):
            error = self._sock.connect_ex(self._to)
            if error == errno.ENOENT:
                error = errno.ECONNREFUSED  # to a stream of TCP nobody is there
        else:
            error = _core.connect_start(self._sock.fileno(), self._to.sockaddr(), 0)
        if error in (0, errno.EISCONN):
            return 0
        if error in (errno.EINPROGRESS, errno.EALREADY, errno.EAGAIN):
            return errno.EAGAIN
        self.close()
        return error

    def _move(self, held: Held) -> None:
        assert self._sock is not None
        page, data, notify_fd, wait_fd, events = moving.ring_end(held)
        own = loopback_name(held)
        far, self._sock = strictly.outer(held.guest, self._sock, self._terms), None
        token = _core.mover_add_ring(
            held.guest.backend.mover,
            far.detach(),
            page,
            data,
            "back",
            notify_fd,
            wait_fd,
            events,
            True,
        )
        moving.carried(held, token, 0)
        held.joined = Joined(token, own, self._asked)
