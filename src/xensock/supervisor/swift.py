"""Lines of the audit log for connects that the core carried out by itself, thousands a second.

Theory of operation: of the records of such calls nearly everything is the same for one destination and verdict. A
`Kind` has the line as a format, made once from a `Record`; each call fills in when, who and which. While anybody beside
the audit log wants records, `Record`s are made instead, also for the ends of connections that began as lines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple

from xensock.calls.record import Record, closed

if TYPE_CHECKING:
    from xensock.calls.address import IPAddress

MOST = 4096  # kinds that are kept
_CALL = {
    "time": b"%r", "pid": b"%d", "program": b"%b", "duration": b"%r", "user": b"%d", "connection": b"%d",
}  # fmt: skip
_END = {**_CALL, "result": b"%d", "error": b"%d", "sent": b"%b", "received": b"%b"}
_NAMES = tuple(each.name for each in fields(Record))


class Begun(NamedTuple):
    """A connection whose end is to be told; `kind` says what does not vary."""

    kind: Kind
    time: float
    pid: int
    program: str
    user: int
    connection: int

    @property
    def record(self) -> Record:
        """Of the call that began it."""
        kind, time, pid, program, user, connection = self
        return replace(
            kind.record, time=time, pid=pid, program=program, user=user, connection=connection
        )

    def end(self, moment: float, sent: int | None, received: int | None, error: int) -> bytes:
        """The line of its end."""
        kind, time, pid, program, user, connection = self
        return kind.end % (
            moment, pid, kind.quoted(program), -1 if error else 0, error, moment - time, user, connection,
            _number(sent), _number(received),
        )  # fmt: skip


def _number(value: int | None) -> bytes:
    return b"null" if value is None else b"%d" % value


@dataclass(slots=True)
class Kind:
    """Connects to one destination, by one verdict, with one outcome."""

    record: Record
    address: IPAddress | None
    call: bytes
    end: bytes
    programs: dict[str, bytes]

    @classmethod
    def of(cls, record: Record, address: IPAddress | None) -> Kind:
        """Those that are like this one; `address` is the destination's."""
        return cls(
            record,
            address,
            _format(b"call", record, _CALL),
            _format(b"end", closed(record, 0.0, None, None, 0), _END),
            {},
        )

    def quoted(self, program: str) -> bytes:
        """The name of a program in JSON."""
        known = self.programs.get(program)
        if known is None:
            if len(self.programs) >= MOST:
                self.programs.clear()  # a guest may call itself anything
            known = self.programs[program] = json.dumps(program).encode()
        return known

    def begin(
        self, time: float, pid: int, program: str, duration: float, user: int, connection: int
    ) -> tuple[bytes, Begun]:
        """The line of a call, and what its connection's end needs."""
        line = self.call % (time, pid, self.quoted(program), duration, user, connection)
        return line, Begun(self, time, pid, program, user, connection)


def _format(kind: bytes, record: Record, varying: dict[str, bytes]) -> bytes:
    """A line but for its head: the values that vary as conversions, in the order of the record's members."""
    members = [b'"kind":"%b"' % kind]
    for name in _NAMES:
        value = varying.get(name)
        if value is None:
            value = json.dumps(getattr(record, name)).encode().replace(b"%", b"%%")
        members.append(b'"%b":%b' % (name.encode(), value))
    return b",".join(members) + b"}\n"
