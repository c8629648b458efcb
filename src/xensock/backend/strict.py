"""Carries those connections of a backend's guests whose rules verify or limit them (pvcalls.serving.strictly)."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from xensock.supervisor.checking import terms_for
from xensock.supervisor.relay import Relay, Terms

if TYPE_CHECKING:
    from xensock.calls.address import Endpoint
    from xensock.calls.call import Decision
    from xensock.policy.point import Point


class Strict:
    """Used on the backend's thread; its own threads begin with the first such connection."""

    def __init__(self) -> None:
        self._relay: Relay | None = None

    def terms(
        self, point: Point, end: Endpoint, decision: Decision, pid: int, program: str
    ) -> Terms | Decision | None:
        """What the rule says of a connection, or the refusal."""
        return terms_for(point, end, decision, pid, program)

    def join(self, near: socket.socket, far: socket.socket, terms: object) -> None:
        """Move bytes between two sockets, which are its own from now on, as the rule says."""
        assert isinstance(terms, Terms)  # of terms() above
        if self._relay is None:
            self._relay = Relay(socket.socket)
        self._relay.join(near, far, terms)

    def close(self, linger: float = 0.0) -> None:
        """End every connection; what guests sent is still delivered, for up to `linger` seconds."""
        if self._relay is not None:
            self._relay.close(linger)
