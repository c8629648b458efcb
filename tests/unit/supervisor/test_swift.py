"""A line that was made swiftly says what the record of the same call says. How the core fills parts: test_ledger.c."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from xensock.calls.record import Record, closed
from xensock.observe.audit import AuditLog
from xensock.supervisor import swift
from xensock.supervisor.swift import Ledger

if TYPE_CHECKING:
    from pathlib import Path

texts = st.text(max_size=20)
times = st.floats(0, 4e9)
counts = st.none() | st.integers(0, 2**63)
records = st.builds(
    Record,
    times, texts, st.integers(0, 2**22), texts, st.just("connect"), texts, st.none() | texts,
    st.just("allow"), texts, texts, st.just("direct"), st.sampled_from([0, -1]), st.integers(0, 200),
    st.floats(0, 1e6), texts, texts, st.integers(-1, 2**32 - 1), st.integers(0, 2**63),
)  # fmt: skip
CALL = ("time", "pid", "duration", "user", "connection")
END = (
    "time", "pid", "result", "error", "duration", "user", "connection", "sent", "received",
)  # fmt: skip


def filled(parts: list[bytes], record: Record, names: tuple[str, ...]) -> dict[str, object]:
    """The line with its values put between the parts, in the order that native/core/ledger.h gives; its members."""
    values = [json.dumps(getattr(record, name)).encode() for name in names]
    line = b"".join(itertools.chain(*itertools.zip_longest(parts, values, fillvalue=b"")))
    assert len(parts) == len(values) + 1
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    found: dict[str, object] = json.loads(b"{" + line)
    return found


@given(records, records, counts, counts, st.integers(0, 200), times)
def test_lines_are_as_those_of_records(
    first: Record, call: Record, sent: int | None, received: int | None, error: int, moment: float
) -> None:
    """The first one makes the kind; another differs from it in when, who and which."""
    same = replace(
        first, time=call.time, pid=call.pid, duration=call.duration, user=call.user,
        connection=call.connection,
    )  # fmt: skip
    begin = swift._parts(b"call", first, swift._CALL)
    end = swift._parts(b"end", closed(first, 0.0, None, None, 0), swift._END)
    assert filled(begin, same, CALL) == {"kind": "call", **asdict(same)}
    over = closed(same, moment, sent, received, error)
    assert filled(end, over, END) == {"kind": "end", **asdict(over)}


def test_what_began_as_a_line_ends_as_a_record() -> None:
    ledger = Ledger()
    record = Record(1.5, "g", 7, "curl", "connect", "198.51.100.7:80", rule="r", connection=4)
    kind = ledger.kind(record, None)
    other = ledger.kind(replace(record, program="wget"), None)
    assert kind.number != other.number
    begun = ledger.take((kind.number, 9, 2_500_000_000, 8, 1000))
    assert begun == replace(record, time=2.5, pid=8, user=1000, connection=9)
    assert ledger.take((None, 9, 0, 0, 0)) is None
    ledger.drop(kind)
    again = ledger.kind(replace(record, target="198.51.100.8:80"), None)  # in its place
    begun = ledger.take((again.number, 9, 2_500_000_000, 8, 1000))
    assert begun is not None
    assert begun.target == "198.51.100.8:80"


def test_the_log_takes_them(tmp_path: Path) -> None:
    record = Record(1.5, "g%d", 7, "curl", "connect", "198.51.100.7:80", decision="allow")
    call, end = b'"kind":"call","pid":8}\n', b'"kind":"end","pid":9}\n'
    path = tmp_path / "log"
    log = AuditLog(str(path))
    log.take(call + call, 2)
    log.record(record)
    log.take(end, 1)
    log.close()
    _, *lines = map(json.loads, path.read_text().splitlines())
    assert [each["seq"] for each in lines] == [2, 3, 4, 5]
    assert [each["kind"] for each in lines] == ["call", "call", "call", "end"]
    assert [each["pid"] for each in lines] == [8, 8, 7, 9]
    assert {each["schema"] for each in lines} == {1}


def test_lines_that_find_no_room_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AuditLog(str(path), queue=3)
    with log._lock:
        log._queued = 1  # as if one waited
    log.take(b'"kind":"call","pid":8}\n' * 5, 5)
    with log._lock:
        log._queued -= 1
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [each["kind"] for each in lines] == ["open", "call", "call", "dropped"]
    assert lines[-1]["records"] == 3
