"""The policy of a guest whose calls another backend carries out: that backend decides.

What stays on this host (a route to `host`, UDP ports) is decided here, by the defaults.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from xensock.calls.call import Decision, Protocol
from xensock.policy.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xensock.calls.address import IPAddress
    from xensock.policy.routes import Routes


class Deferred(Policy):
    """Allows what backends decide. `who` names them, for the record; `routes` say what `here` carries out itself."""

    def __init__(self, who: str, routes: Routes | None = None, here: str = "host") -> None:
        super().__init__((), ())
        self._routes, self._here = routes, here
        table = routes.table if routes is not None else ()
        self.names_needed = any(route.rule.addresses is None for route in table)
        # Another answer may be given tomorrow: nothing is remembered here.
        self._decision = Decision(True, f"left to {who}", cacheable=False)
        self._own = Decision(False, "the guest's own loopback", errno.EACCES, cacheable=False)

    def connect(
        self, protocol: Protocol, host: IPAddress, port: int, names: Sequence[str] = ()
    ) -> Decision:
        """See Policy. Loopback stays the guest's own."""
        if host.is_loopback:
            return self._own
        if self._routes and self._routes.of(protocol, host, port, names) == self._here:
            return super().connect(protocol, host, port, names)
        return self._decision

    def listen(
        self, protocol: Protocol, host: IPAddress, port: int, v6only: bool = False
    ) -> Decision:
        """See Policy. Backends carry TCP; a UDP port is one of this host."""
        if protocol != Protocol.TCP:
            return super().listen(protocol, host, port, v6only)
        return self._decision

    def resolve(self, name: str) -> Decision:
        """See Policy."""
        return self._decision
