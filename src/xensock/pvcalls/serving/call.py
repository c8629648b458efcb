"""One command of a guest, from its arrival to its answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xensock.wire.errors import ENOTSUP, to_wire
from xensock.wire.responses import Response

if TYPE_CHECKING:
    from xensock.pvcalls.serving.guest import Guest


class UnsupportedError(Exception):
    """v1's ENOTSUP (-524), which has no errno: a kind of socket or command that there is not."""


@dataclass(slots=True, eq=False)
class Call:
    """Every call gets exactly one answer; a second one would be another call's."""

    guest: Guest
    req_id: int
    cmd: int
    id: int
    start: int = field(default_factory=time.monotonic_ns)
    answered: bool = False
    sequence: int = 0  # among the requests of its session
    slot: bytes = b""  # the request itself
    again: bool = False  # another backend had received it, and perhaps begun

    def answer(self, ret: int = 0) -> None:
        """Answer with a result as the wire has it, and nothing beside it."""
        self.send(self.response(ret))

    def fail(self, error: int) -> None:
        """Answer with an errno."""
        self.answer(to_wire(error))

    def unsupported(self) -> None:
        """Answer that there is no such thing."""
        self.answer(ENOTSUP)

    def response(self, ret: int = 0) -> Response:
        """The answer to this call, for extensions to add to."""
        return Response(self.req_id, self.cmd, ret, self.id)

    def send(self, response: Response) -> None:
        """Answer with a whole response."""
        assert not self.answered, "a call is answered once"
        self.answered = True
        self.guest.send(response, self.sequence)
