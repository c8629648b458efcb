"""What rules with limits have granted one guest: connections that are open, that began lately, and bytes.

A refusal by a limit is ECONNREFUSED: programs take it for a server that is busy, and come again later. (EAGAIN from
connect(2) would be taken for a connection under way, EACCES for one that can never be.)
"""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.call import Decision, Limit


class Grants:
    """Thread-safe; calls of one rule share what it grants. `make_bucket` makes, of bytes per second, what the mover
    slows connections by."""

    def __init__(
        self,
        make_bucket: Callable[[int], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make_bucket = make_bucket
        self._clock = clock
        self._lock = threading.RLock()  # a collection may release a grant anywhere
        self._used: dict[tuple[str, str], _Used] = {}

    def take(self, decision: Decision) -> Grant | Decision:
        """A new connection by an allowed decision that has a limit: what it may have, or the refusal."""
        limit = decision.limit
        assert limit is not None  # callers hold such a decision
        key = (decision.source, decision.rule)
        with self._lock:
            used = self._used.get(key)
            if used is None or used.limit != limit:  # another policy may grant more, or less
                used = self._used[key] = self._new(limit, used)
            if limit.concurrent is not None and used.open >= limit.concurrent:
                return _refused(decision, f"{limit.concurrent} connections at once")
            if not used.may_begin(self._clock()):
                return _refused(decision, f"{limit.connects:g} new connections per second")
            used.open += 1
            return Grant(self, used)

    def _new(self, limit: Limit, before: _Used | None) -> _Used:
        bucket = None
        if limit.rate is not None:
            if self._make_bucket is None:
                from xensock import _core

                self._make_bucket = _core.bucket
            bucket = self._make_bucket(limit.rate)
        used = _Used(limit, bucket, limit.connects or 0.0, self._clock())
        used.tokens = max(used.tokens, 1.0)
        if before is not None:
            used.open = before.open
            before.heir = used
        return used

    def _back(self, used: _Used) -> None:
        with self._lock:
            while used.heir is not None:
                used = used.heir
            used.open -= 1


@dataclass(slots=True, eq=False)
class _Used:
    limit: Limit
    bucket: object
    tokens: float  # connections that may begin at once
    stamp: float
    open: int = 0
    heir: _Used | None = None  # what counts its connections since the limit was changed

    def may_begin(self, now: float) -> bool:
        """Whether another connection may begin now; then it has."""
        rate = self.limit.connects
        if rate is None:
            return True
        self.tokens = min(max(rate, 1.0), self.tokens + (now - self.stamp) * rate)
        self.stamp = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Grant:
    """One connection's share, until `release`, or until nobody holds it any more: there are many ways for a connection
    not to come about."""

    __slots__ = ("_grants", "_used", "bucket")

    def __init__(self, grants: Grants, used: _Used) -> None:
        self._grants = grants
        self._used: _Used | None = used
        self.bucket = used.bucket

    def release(self) -> None:
        """The connection is over; again is fine."""
        used, self._used = self._used, None
        if used is not None:
            self._grants._back(used)

    def __del__(self) -> None:
        self.release()


def unable(decision: Decision) -> Decision:
    """The refusal where nobody can see to what the rule says."""
    return replace(
        decision,
        allowed=False,
        error=errno.EACCES,
        cacheable=False,
        rule=f"{decision.rule}: nobody here verifies or limits",
        hint="take verify and limit out of the rule, or use another way to run the guest",
    )


def _refused(decision: Decision, what: str) -> Decision:
    where = f" at {decision.source}" if decision.source else ""
    return replace(
        decision,
        allowed=False,
        error=errno.ECONNREFUSED,
        cacheable=False,
        rule=f"limit of {decision.rule}: {what}",
        hint=f"raise the limit{where}, or try again later",
    )
