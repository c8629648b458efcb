"""What refuses every call for the moment, whatever the policy says: an audit log that cannot take another record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xensock.calls.call import Decision

if TYPE_CHECKING:
    from xensock.calls.address import IPAddress

    class _Names(Protocol):
        def resolve(self, name: str, /) -> Decision: ...

        def answer(self, name: str, address: IPAddress, /) -> Decision: ...


# The refusal, or None while calls may go on.
Gate = Callable[[], Decision | None]


@dataclass(frozen=True, slots=True)
class GatedNames:
    """A policy for names behind a gate."""

    policy: _Names
    gate: Gate

    def resolve(self, name: str) -> Decision:
        """May the guest resolve this name now?"""
        return self.gate() or self.policy.resolve(name)

    def answer(self, name: str, address: IPAddress) -> Decision:
        """May a name that was allowed have this address?"""
        return self.policy.answer(name, address)
