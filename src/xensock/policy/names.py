"""Which addresses a guest learned by which names: what makes rules by name possible.

Rules
- Only the backend's own resolver teaches names; one `Names` per guest.
- A pair of name and address holds for its time to live plus a grace of 60 s, and for an hour at
  least: programs keep addresses longer than DNS says (nginx resolves its upstreams once, at its
  start; a JVM keeps answers for as long as it likes), and a connection they retry must not be
  refused in between. Learning a pair again never shortens its life.
- Bounded: beyond `limit` pairs the one that was learned longest ago is forgotten.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from xensock.policy.groups import unmapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xensock.calls.address import IPAddress

GRACE = 60.0
LEAST = 3600.0
LIMIT = 65536


def normal_name(name: str) -> str:
    """A host name as names are compared: lower case, no trailing dot. IDNA is left as it is."""
    return name.removesuffix(".").lower()


class Names:
    """A thread-safe, bounded memory of (name, address) pairs. Times are in seconds."""

    def __init__(
        self,
        limit: int = LIMIT,
        grace: float = GRACE,
        least: float = LEAST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if limit < 1 or grace < 0 or least < 0:
            raise ValueError("limit is at least 1, grace and least are not negative")
        self._limit = limit
        self._grace = grace
        self._least = least
        self._clock = clock
        self._lock = threading.Lock()
        # Both dicts keep the order of learning, oldest first.
        self._expiry: dict[tuple[IPAddress, str], float] = {}
        self._names: dict[IPAddress, dict[str, None]] = {}

    def __len__(self) -> int:
        """How many pairs are held, expired ones that nobody asked for included."""
        with self._lock:
            return len(self._expiry)

    def learn(self, name: str, addresses: Iterable[IPAddress], ttl: float) -> None:
        """Remember that the backend resolved `name` to `addresses`, for `ttl` seconds."""
        name = normal_name(name)
        expiry = self._clock() + max(ttl + self._grace, self._least)
        with self._lock:
            for address in addresses:
                pair = (unmapped(address), name)
                before = self._forget(pair)
                self._expiry[pair] = max(expiry, before)
                self._names.setdefault(pair[0], {})[name] = None
                if len(self._expiry) > self._limit:
                    self._forget(next(iter(self._expiry)))

    def of(self, address: IPAddress) -> tuple[str, ...]:
        """The names by which the guest knows this address, the latest first."""
        address = unmapped(address)
        with self._lock:
            known = self._names.get(address)
            if not known:
                return ()
            now = self._clock()
            for name in [name for name in known if self._expiry[address, name] <= now]:
                self._forget((address, name))
            return tuple(reversed(known))

    def _forget(self, pair: tuple[IPAddress, str]) -> float:
        """Drop a pair and return when it would have expired (0 if it was not there)."""
        expiry = self._expiry.pop(pair, None)
        if expiry is None:
            return 0.0
        known = self._names[pair[0]]
        del known[pair[1]]
        if not known:
            del self._names[pair[0]]
        return expiry
