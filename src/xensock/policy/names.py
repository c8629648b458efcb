"""Which addresses a guest learned by which names: what makes rules by name possible.

Rules
- Only the backend's own resolver teaches names; one `Names` per guest.
- A pair of name and address holds for its time to live plus a grace of 60 s: between an answer and the
  connection that follows lies the work of a program, and a time to live may be 0. Learning a pair again
  never shortens its life. A time to live beyond a week counts as a week (RFC 8767, 4).
- Connections and flows that began in time go on; only new ones ask again.
- Bounded: beyond `limit` pairs the one that was learned longest ago is forgotten. Those that lapsed are kept
  until then, to explain a refusal.
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
LONGEST = 7 * 86400.0
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if limit < 1 or grace < 0:
            raise ValueError("limit is at least 1, grace is not negative")
        self._limit = limit
        self._grace = grace
        self._clock = clock
        self._lock = threading.RLock()
        # Hears of what is learned, and when that lapses, before anybody can act on it.
        self.told: Callable[[str, list[IPAddress], float], None] | None = None
        # Both dicts keep the order of learning, oldest first.
        self._expiry: dict[tuple[IPAddress, str], float] = {}
        self._names: dict[IPAddress, dict[str, None]] = {}

    def __len__(self) -> int:
        """How many pairs are held, lapsed ones included."""
        with self._lock:
            return len(self._expiry)

    def learn(self, name: str, addresses: Iterable[IPAddress], ttl: float) -> None:
        """Remember that the backend resolved `name` to `addresses`, for `ttl` seconds."""
        name = normal_name(name)
        expiry = self._clock() + min(max(ttl, 0), LONGEST) + self._grace
        learned = list(addresses)
        with self._lock:
            self.restore(name, learned, expiry)
            if self.told is not None:
                self.told(name, learned, expiry)

    def restore(self, name: str, addresses: Iterable[IPAddress], expiry: float) -> None:
        """Remember what was learned before, until `expiry`, a time of the clock."""
        name = normal_name(name)
        with self._lock:
            for address in addresses:
                pair = (unmapped(address), name)
                before = self._forget(pair)
                self._expiry[pair] = max(expiry, before)
                self._names.setdefault(pair[0], {})[name] = None
                if len(self._expiry) > self._limit:
                    self._forget(next(iter(self._expiry)))

    def current(self) -> list[tuple[IPAddress, str, float]]:
        """The pairs that have not lapsed and when they do, in the order of learning."""
        with self._lock:
            now = self._clock()
            return [(*pair, expiry) for pair, expiry in self._expiry.items() if expiry > now]

    def of(self, address: IPAddress) -> tuple[str, ...]:
        """The names by which the guest knows this address, the latest first."""
        return self._known(address, lapsed=False)

    def lapsed(self, address: IPAddress) -> tuple[str, ...]:
        """The names by which the guest knew this address once, and no longer does, the latest first."""
        return self._known(address, lapsed=True)

    def keep(self, right: Callable[[str, IPAddress], bool]) -> None:
        """Forget every pair of name and address for which right() is False."""
        with self._lock:
            for address, name in [p for p in self._expiry if not right(p[1], p[0])]:
                self._forget((address, name))

    def _known(self, address: IPAddress, lapsed: bool) -> tuple[str, ...]:
        address = unmapped(address)
        with self._lock:
            known = self._names.get(address)
            if not known:
                return ()
            now = self._clock()
            return tuple(
                name for name in reversed(known) if (self._expiry[address, name] <= now) == lapsed
            )

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
