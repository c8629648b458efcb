"""The policy of a guest whose calls other backends carry out: those decide what they carry, this host's defaults the
rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock.calls.call import NOBODY, Decision
from xensock.policy.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xensock.calls.address import IPAddress
    from xensock.calls.call import Protocol, Subject
    from xensock.policy.routes import Routes

HOST = "host"


@dataclass(frozen=True, slots=True)
class Left(Decision):
    """Allowed as far as we are concerned: somebody else decides."""


class Deferred(Policy):
    """Allows here what a backend carries by `routes`, and what the defaults allow on this host."""

    def __init__(self, routes: Routes) -> None:
        super().__init__()
        self._routes = routes
        self.names_needed = any(route.rule.addresses is None for route in routes.table)

    def connect(
        self,
        protocol: Protocol,
        host: IPAddress,
        port: int,
        names: Sequence[str] = (),
        subject: Subject = NOBODY,
    ) -> Decision:
        """See Policy."""
        stack = self._routes.of(protocol, host, port, names)
        if stack != HOST:
            return left_to(stack)
        return super().connect(protocol, host, port, names, subject)

    def listen(
        self,
        protocol: Protocol,
        host: IPAddress,
        port: int,
        v6only: bool = False,
        subject: Subject = NOBODY,
    ) -> Decision:
        """See Policy. Guests take connections and datagrams at the default backend."""
        return left_to(self._routes.default)

    def resolve(self, name: str, subject: Subject = NOBODY) -> Decision:
        """See Policy."""
        stack = self._routes.of_name(name)
        return super().resolve(name, subject) if stack == HOST else left_to(stack)


def left_to(stack: str) -> Decision:
    """Another answer may be given tomorrow: nothing is remembered here."""
    return Left(True, f"left to {stack}", cacheable=False)


def final(ours: Decision, theirs: Decision | None) -> Decision:
    """What holds when we decided and the backend that carries the call did; None: it does not say."""
    if theirs is None or (theirs.allowed and not isinstance(ours, Left)):
        return ours
    return theirs
