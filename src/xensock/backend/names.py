"""Names for the guests of a backend: this host's resolver, what each guest learnt, each guest's rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xensock.policy.names import Names
from xensock.supervisor.dns import Counts

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.address import IPAddress
    from xensock.calls.call import Decision
    from xensock.calls.record import Record
    from xensock.policy.point import ResolvePolicy
    from xensock.stack.networks import Answers
    from xensock.supervisor.questions import Questions

LIMIT = 512  # questions of one guest under way at once


class GuestNames:
    """The name service of one guest, on the backend's event loop. `policy` decides until the guest's point does."""

    def __init__(
        self,
        guest: str,
        resolver: Answers,
        policy: ResolvePolicy,
        record: Callable[[Record], None] | None,
        limit: int = LIMIT,
    ) -> None:
        self.guest = guest
        self.resolver = resolver
        self.policy = policy
        self.names = Names()
        self.record = record or (lambda one: None)
        self.limit = limit
        self.counts = Counts()
        self._questions: Questions | None = None

    def names_of(self, address: IPAddress) -> tuple[str, ...]:
        """The names by which the guest knows an address: what it asked for, and the hosts file."""
        return (*self.names.of(address), *self.resolver.hosts_names(address))

    def lapsed(self, address: IPAddress) -> tuple[str, ...]:
        """The names by which it knew the address until their answers lapsed."""
        return self.names.lapsed(address)

    def keep(self, right: Callable[[str, IPAddress], bool]) -> None:
        """Forget every pair of name and address for which right() is False."""
        self.names.keep(right)

    async def answer(
        self, message: bytes, server: IPAddress | None, *, datagram: bool
    ) -> bytes | None:
        """The answer to a DNS message; None when it deserves none."""
        found = await self.explained(message, server, datagram=datagram)
        return found[0] if found is not None else None

    async def explained(
        self, message: bytes, server: IPAddress | None, *, datagram: bool
    ) -> tuple[bytes, Decision] | None:
        """The answer, and what was decided."""
        if self._questions is None:
            from xensock.supervisor.questions import Questions

            self._questions = Questions(self)
        return await self._questions.explained(message, server, datagram=datagram)
