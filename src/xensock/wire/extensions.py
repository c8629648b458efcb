"""The extensions of PV Calls v1: their names in the store, and what each adds to the commands.

A backend announces `feature-NAME = "1"`, a frontend that wants it writes `request-NAME = "1"`.
What was not announced and requested does not exist: both sides speak exactly v1.
"""

from __future__ import annotations

from enum import StrEnum


class Extension(StrEnum):
    """An extension by its name in the nodes `feature-NAME` and `request-NAME`."""

    DATA_EVENTS = "data-events"
    SHUTDOWN = "shutdown"
    NAMES = "names"
    OPTIONS = "options"
    IPV6 = "ipv6"
    ASYNC_CONNECT = "async-connect"
    CLOSE = "close"
    DATAGRAMS = "datagrams"
    ICMP_ECHO = "icmp-echo"
    RESOLVE = "resolve"
    EXPLAIN = "explain"
    UNIX = "unix"
    LARGE_RINGS = "large-rings"
    SHARED_RINGS = "shared-rings"
    HOPS = "hops"
    PACKET_INFO = "packet-info"
    URGENT = "urgent"

    @property
    def feature(self) -> str:
        """The backend's node."""
        return f"feature-{self.value}"

    @property
    def request(self) -> str:
        """The frontend's node."""
        return f"request-{self.value}"


V1: frozenset[Extension] = frozenset()
ALL: frozenset[Extension] = frozenset(Extension)

# An extension that is meaningless without another one: requested alone it is refused.
NEEDS: dict[Extension, Extension] = {
    Extension.ICMP_ECHO: Extension.DATAGRAMS,
    Extension.RESOLVE: Extension.DATAGRAMS,
    Extension.PACKET_INFO: Extension.DATAGRAMS,
    Extension.SHARED_RINGS: Extension.DATA_EVENTS,
}
