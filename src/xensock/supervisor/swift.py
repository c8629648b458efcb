"""Lines of the audit log for connects that the core carried out by itself, thousands a second.

Theory of operation: of the records of such calls, and of the ends of their connections, nearly everything is the same
for one destination, verdict and program. A `Kind` has the constant parts of both lines, made once from a `Record`; the
core (native/core/ledger.h) fills in when, who and which. While anybody beside the audit log wants records, `Record`s
are made instead, also for the ends of connections that began as lines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.record import Record, closed

if TYPE_CHECKING:
    from xensock.calls.address import IPAddress

MOST = 4096  # kinds that a supervisor keeps
_CALL = frozenset({"time", "pid", "duration", "user", "connection"})
_END = _CALL | {"result", "error", "sent", "received"}
_NAMES = tuple(each.name for each in fields(Record))


@dataclass(frozen=True, slots=True)
class Kind:
    """Connects of one program to one destination, by one verdict, with one outcome; `address` is the destination's."""

    number: int
    record: Record
    address: IPAddress | None


class Ledger:
    """Kinds, and connections under way; the handle is the core's."""

    def __init__(self) -> None:
        self.handle = _core.ledger()
        self._kinds: dict[int, Kind] = {}

    def kind(self, record: Record, address: IPAddress | None) -> Kind:
        """Those that are like this one."""
        parts = _parts(b"call", record, _CALL) + _parts(
            b"end", closed(record, 0.0, None, None, 0), _END
        )
        number = _core.ledger_kind(self.handle, parts)
        made = self._kinds[number] = Kind(number, record, address)  # in the place of one that went
        return made

    def drop(self, kind: Kind) -> None:
        """No more calls are of this kind."""
        _core.ledger_drop(self.handle, kind.number)

    def take(self, begun: _core.Begun) -> Record | None:
        """The record of the call that began a connection, which is under way no more; None: it has no kind."""
        number, cookie, moment, tid, user = begun
        if number is None:
            return None
        record = self._kinds[number].record
        _core.ledger_done(self.handle, number)
        return replace(record, time=moment / 1e9, pid=tid, user=user, connection=cookie)


def _parts(kind: bytes, record: Record, varying: frozenset[str]) -> list[bytes]:
    """A line but for its head: what is between the values that vary, in the order of the record's members."""
    parts = [b'"kind":"%b"' % kind]
    for name in _NAMES:
        parts[-1] += b',"%b":' % name.encode()
        if name in varying:
            parts.append(b"")
        else:
            parts[-1] += json.dumps(getattr(record, name)).encode()
    parts[-1] += b"}\n"
    return parts
