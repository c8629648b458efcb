"""A line that was made swiftly says what the record of the same call says."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from hypothesis import given
from hypothesis import strategies as st

from xensock.calls.record import Record, closed
from xensock.observe.audit import AuditLog
from xensock.supervisor.swift import Kind

texts = st.text(max_size=20)
times = st.floats(0, 4e9)
counts = st.none() | st.integers(0, 2**63)
records = st.builds(
    Record,
    times, texts, st.integers(0, 2**22), texts, st.just("connect"), texts, st.none() | texts,
    st.just("allow"), texts, texts, st.just("direct"), st.sampled_from([0, -1]), st.integers(0, 200),
    st.floats(0, 1e6), texts, texts, st.integers(-1, 2**32 - 1), st.integers(0, 2**63),
)  # fmt: skip


def read(line: bytes, kind: str) -> dict[str, object]:
    assert line.endswith(b"}\n")
    assert line.isascii()
    found: dict[str, object] = json.loads(b"{" + line)
    assert found.pop("kind") == kind
    return found


@given(records, records, counts, counts, st.integers(0, 200), times)
def test_lines_are_as_those_of_records(
    first: Record, call: Record, sent: int | None, received: int | None, error: int, moment: float
) -> None:
    """The first one makes the format; another differs from it in when, who and which."""
    same = replace(
        first,
        time=call.time, pid=call.pid, program=call.program, duration=call.duration, user=call.user,
        connection=call.connection,
    )  # fmt: skip
    kind = Kind.of(first, None)
    line, begun = kind.begin(
        same.time, same.pid, same.program, same.duration, same.user, same.connection
    )
    assert read(line, "call") == asdict(same)
    assert begun.connection == same.connection
    end = closed(same, moment, sent, received, error)
    if not same.time:  # a beginning that nobody saw is none of a call's
        end = replace(end, duration=moment)
    assert read(begun.end(moment, sent, received, error), "end") == asdict(end)
    whole = begun.record
    assert closed(whole, moment, sent, received, error) == closed(
        same, moment, sent, received, error
    )


def test_the_log_takes_them(tmp_path) -> None:
    record = Record(1.5, "g%d", 7, "curl", "connect", "198.51.100.7:80", decision="allow")
    line, begun = Kind.of(record, None).begin(2.5, 8, "wget\n", 0.25, 1000, 9)
    path = tmp_path / "log"
    log = AuditLog(str(path))
    log.take([line])
    log.record(record)
    log.take([begun.end(3.5, 10, None, 0)])
    log.close()
    _, call, other, end = map(json.loads, path.read_text().splitlines())
    assert [each["seq"] for each in (call, other, end)] == [2, 3, 4]
    assert (call["kind"], call["guest"], call["program"], call["user"]) == (
        "call",
        "g%d",
        "wget\n",
        1000,
    )
    assert (end["kind"], end["verb"], end["duration"], end["sent"]) == ("end", "close", 1.0, 10)
    assert call.keys() == other.keys() == end.keys()
