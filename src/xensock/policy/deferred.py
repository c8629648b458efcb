"""The policy of a guest whose calls another backend carries out: that backend decides."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from xensock.calls.call import Decision, Protocol
from xensock.policy.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xensock.calls.address import IPAddress


class Deferred(Policy):
    """Allows everything here. `who` names the backends, for the record."""

    def __init__(self, who: str) -> None:
        super().__init__((), ())
        # Another answer may be given tomorrow: nothing is remembered here.
        self._decision = Decision(True, f"left to {who}", cacheable=False)
        self._own = Decision(False, "the guest's own loopback", errno.EACCES, cacheable=False)

    def connect(
        self, protocol: Protocol, host: IPAddress, port: int, names: Sequence[str] = ()
    ) -> Decision:
        """See Policy. Loopback stays the guest's own."""
        return self._own if host.is_loopback else self._decision

    def listen(
        self, protocol: Protocol, host: IPAddress, port: int, v6only: bool = False
    ) -> Decision:
        """See Policy."""
        return self._decision

    def resolve(self, name: str) -> Decision:
        """See Policy."""
        return self._decision
