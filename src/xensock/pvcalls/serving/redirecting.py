"""Connections that a rule sends elsewhere: to another address, to a unix socket of the host, by another network.

The guest's socket keeps the peer that it asked for. Its own name is one on the loopback, as of connections to the
name service: at the far side there is another one, or none.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Protocol

from xensock import _core
from xensock.calls.hops import MOST, circle
from xensock.policy.deferred import final
from xensock.policy.networks import AWAY
from xensock.pvcalls.serving import moving, strictly
from xensock.pvcalls.serving.asking import loopback_name
from xensock.pvcalls.serving.attempt import Way
from xensock.pvcalls.serving.held import Joined
from xensock.pvcalls.serving.passing import Passing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xensock.calls.address import Endpoint
    from xensock.calls.call import Decision
    from xensock.pvcalls.serving.held import Held
    from xensock.pvcalls.serving.passing import Passer


class Carrier(Protocol):
    """A network that is there. `passer`: another backend, by which calls go; None where it is one of this host's."""

    name: str

    @property
    def passer(self) -> Passer | None:
        """See above."""
        ...

    def make(self, family: int, type: int, protocol: int, /) -> socket.socket:
        """A socket of it. Raises OSError."""
        ...


class Elsewhere(Protocol):
    """Networks by name (backend.networks has those of a policy)."""

    def carriers(self, names: Sequence[str], /) -> Sequence[Carrier]:
        """Those of these names that are there, in their order."""
        ...


class Own:
    """The backend's own network."""

    name = ""
    passer = None

    def make(self, family: int, type: int, protocol: int) -> socket.socket:
        """A socket of it. Raises OSError."""
        return socket.socket(family, type, protocol)


def carriers(elsewhere: Elsewhere | None, decision: Decision) -> list[Carrier]:
    """Who may carry an allowed connection, in their order; nobody where its rule's networks are all away."""
    if not decision.via:
        return [Own()]
    return list(elsewhere.carriers(decision.via)) if elsewhere is not None else []


class Far:
    """The far side of one connection, while it is made. `by`: who may carry it, the first first."""

    def __init__(
        self,
        held: Held,
        asked: Endpoint,
        to: Endpoint | str,
        terms: object,
        by: Sequence[Carrier],
    ) -> None:
        self._left = list(by)
        self._name = ""
        self._terms = terms
        self._held = held
        self._asked = asked
        self._to = to
        self._sock: socket.socket | None = None
        self._passing: Passing | None = None
        self._theirs: Decision | None = None

    @property
    def way(self) -> Way:
        """How to connect there."""
        return Way(
            lambda sock: self._start(),
            self._move,
            waits=True,
            wake=self._wake,
            undecided=lambda: self._passing is not None and self._passing.undecided,
        )

    def said(self, decision: Decision) -> Decision:
        """The decision, with the network that carried the call where its rule names any, or that of the other backend
        which refused."""
        if self._name:
            decision = decision.by(self._name)
        return final(decision, self._theirs)

    def close(self) -> None:
        """The attempt is over; what was moved belongs to the mover."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._passing is not None:
            self._passing.close()
            self._passing = None

    def _wake(self, call: Callable[[], None]) -> None:
        if self._passing is not None:
            self._passing.wake(call)

    def _start(self) -> int:
        """0, the errno of connect(2), or EAGAIN while it is under way."""
        error = errno.ENETUNREACH
        while self._sock is not None or self._passing is not None or self._left:
            error = self._step()
            if error not in AWAY:
                break
        return error

    def _step(self) -> int:
        if self._passing is not None:
            return self._passed(self._passing)
        if self._sock is None:
            carrier = self._left.pop(0)
            family = socket.AF_UNIX if isinstance(self._to, str) else self._to.family
            self._name, self._theirs = carrier.name, None
            if carrier.passer is not None and not isinstance(self._to, str):
                if self._held.hops >= MOST:
                    self._theirs = circle(carrier.name)
                    return self._theirs.error
                self._passing = Passing(carrier.passer, self._to, self._held.hops + 1)
                return errno.EAGAIN
            try:
                self._sock = carrier.make(family, socket.SOCK_STREAM, 0)
            except OSError as failure:
                return failure.errno or errno.EIO
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

    def _passed(self, passing: Passing) -> int:
        error = passing.poll()
        if error != errno.EAGAIN:
            self._theirs = passing.decided
        if error not in (0, errno.EAGAIN):
            self.close()
        return error

    def _far(self) -> socket.socket:
        """What the ring is to be joined with: the far side itself, or our end of a pair whose other one leads there."""
        if self._passing is None:
            assert self._sock is not None
            far, self._sock = self._sock, None
            return far
        near, inner = strictly.pair()
        try:
            self._passing.splice(inner)
        except BaseException:
            near.close()
            raise
        return near

    def _move(self, held: Held) -> None:
        own = loopback_name(held)
        far = strictly.outer(held.guest, self._far(), self._terms)
        token = moving.join(held, far.detach())
        moving.carried(held, token, 0)
        held.joined = Joined(token, own, self._asked)
