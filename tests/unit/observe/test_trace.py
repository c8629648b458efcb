"""Trace lines: aligned, escaped, coloured only when asked, and JSON that reads back."""

import errno
import io
import json
import re
import threading
from dataclasses import fields, replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.calls import Outcome, Path, Record, Verb
from xensock.observe import TraceWriter, record_from_json, record_to_json

ALLOWED = Record(
    time=1_700_000_000.5,
    guest="g",
    pid=71,
    program="curl",
    verb=Verb.CONNECT,
    target="203.0.113.9:443",
    name="web.test",
    decision="allow",
    rule="web.test:443",
    datapath="direct",
    duration=0.00125,
)
REFUSED = replace(
    ALLOWED,
    decision="deny",
    rule="default: not in --allow",
    hint="--allow web.test:443",
    datapath="",
    result=-1,
    error=errno.EACCES,
)


def text(*records: Record, colour: bool = False) -> list[str]:
    stream = io.StringIO()
    writer = TraceWriter(stream, "text", colour)
    for record in records:
        writer.write(record)
    return stream.getvalue().splitlines()


def test_an_allowed_call() -> None:
    (line,) = text(ALLOWED)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.500  curl\[71\] +connect\(203\.0\.113\.9:443\) = 0 +web\.test +"
        r"allow web\.test:443 +direct +1\.25 ms",
        line,
    ), line


def test_a_refused_call_says_what_would_allow_it() -> None:
    (line,) = text(REFUSED)
    assert "connect(203.0.113.9:443) = -1 EACCES " in line
    assert "deny default: not in --allow" in line
    assert line.endswith("hint: --allow web.test:443")


def test_what_was_allowed_and_failed_says_what_to_do() -> None:
    """Where its rule's networks are all away, for instance."""
    away = replace(ALLOWED, hint="bring it up", result=-1, error=errno.ENETUNREACH)
    failed, done = text(away, replace(ALLOWED, hint="bring it up"))
    assert failed.endswith("hint: bring it up")
    assert "hint" not in done


def test_with_a_policy_file_it_says_what_to_add_there() -> None:
    stream = io.StringIO()
    writer = TraceWriter(stream, policy="policy.toml")
    writer.write(REFUSED)
    hint = 'hint: allow = "web.test:443" under [[rule]] in policy.toml\n'
    assert stream.getvalue().endswith(hint)


def test_columns_are_aligned_and_grow_within_limits() -> None:
    long = replace(ALLOWED, program="a-long-program", target="[2001:db8:1:2:3:4:5:6]:65535")
    endless = replace(ALLOWED, name="x" * 200)
    lines = text(ALLOWED, REFUSED, long, endless, ALLOWED, REFUSED)
    after = [line.index(word) for line, word in zip(lines[4:], ("allow", "deny"), strict=True)]
    assert len(set(after)) == 1
    assert lines[4].index(" ms") == lines[5].index(" ms")
    assert len(lines[4]) < 200
    assert "x" * 200 in lines[3]


def test_colour_only_by_flag() -> None:
    assert "\x1b" not in "".join(text(ALLOWED, REFUSED))
    plain, coloured = text(REFUSED), text(REFUSED, colour=True)
    assert "\x1b[31mdeny" in coloured[0]
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in coloured] == plain


def test_pending_is_no_failure() -> None:
    pending = replace(ALLOWED, result=-1, error=errno.EINPROGRESS)
    assert "= -1 EINPROGRESS" in text(pending)[0]
    assert "\x1b[31m" not in text(pending, colour=True)[0]


def test_resolve_speaks_dns() -> None:
    asked = replace(ALLOWED, verb=Verb.RESOLVE, target="web.test", pid=0, program="", result=2)
    (line,) = text(asked)
    assert re.search(r"  -  +resolve\(web\.test\) = 2 +allow", line), line
    for number, word in (
        (errno.ENOENT, "= NXDOMAIN"),
        (errno.EAGAIN, "= SERVFAIL"),
        (errno.EACCES, "= REFUSED"),
        (errno.EIO, "= -1 EIO"),
        (9999, "= -1 errno 9999"),
    ):
        assert word in text(replace(asked, result=-1, error=number))[0]


def test_guests_cannot_steer_the_terminal() -> None:
    nasty = replace(
        REFUSED,
        program="a\x1b[2J\n\u202eb\\",
        target="\x07x",
        name="\x9b1m\udcff",
        hint="--allow \x1b]0;x\x07",
    )
    (line,) = text(nasty)
    assert line.isprintable()
    assert r"a\x1b[2J\n\u202eb\\[71]" in line
    assert r"connect(\x07x)" in line
    assert r"\x9b1m\udcff" in line


def test_streams_that_cannot_say_it() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    TraceWriter(stream).write(replace(ALLOWED, program="caf\u00e9"))
    assert rb"caf\xe9[71]" in raw.getvalue()
    stream.close()


def test_long_durations() -> None:
    assert text(replace(ALLOWED, duration=127.25))[0].endswith("   127.2 s ")


def test_unknown_style() -> None:
    with pytest.raises(ValueError, match="text and json"):
        TraceWriter(io.StringIO(), "xml")  # type: ignore[arg-type]


def test_a_broken_stream_is_not_hidden() -> None:
    class Full(io.StringIO):
        def write(self, line: str) -> int:
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        TraceWriter(Full()).write(ALLOWED)


def test_threads_do_not_mix_lines() -> None:
    stream = io.StringIO()
    writer = TraceWriter(stream, "json")

    def work(pid: int) -> None:
        for _ in range(100):
            writer.write(replace(ALLOWED, pid=pid))

    threads = [threading.Thread(target=work, args=(pid,)) for pid in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pids = [record_from_json(line).pid for line in stream.getvalue().splitlines()]
    assert sorted(pids) == sorted([1, 2, 3, 4] * 100)


anything = st.text(st.characters(), max_size=20)
numbers = st.integers(-(2**31), 2**31)
seconds = st.floats(0, 4e9)


@given(
    st.builds(
        Record,
        seconds,
        anything,
        numbers,
        anything,
        st.sampled_from(Verb),
        anything,
        st.none() | anything,
        st.sampled_from(get_args(Outcome)),
        anything,
        anything,
        st.sampled_from(get_args(Path)),
        numbers,
        numbers,
        seconds,
    )
)
def test_json_reads_back_and_text_is_one_line(record: Record) -> None:
    line = record_to_json(record)
    assert line.isascii()
    assert line.isprintable()
    assert record_from_json(line) == record
    assert json.loads(line).keys() == {"schema", *(field.name for field in fields(Record))}
    (shown,) = text(record)
    assert shown.isprintable()


def test_readers_ignore_what_they_do_not_know() -> None:
    line = json.dumps({**json.loads(record_to_json(ALLOWED)), "later": [1]})
    assert record_from_json(line) == ALLOWED
    least = {"schema": 1, "time": 1, "guest": "g", "pid": 1, "program": "p", "verb": "connect"}
    assert record_from_json(json.dumps({**least, "target": "t"})).time == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2"),
        ({"pid": "7"}, "'pid'"),
        ({"pid": True}, "'pid'"),
        ({"name": 3}, "'name'"),
        ({"decision": "maybe"}, "'decision'"),
        ({"datapath": "tunnel"}, "'datapath'"),
    ],
)
def test_wrong_lines_are_refused(change: dict[str, object], message: str) -> None:
    line = json.dumps({**json.loads(record_to_json(ALLOWED)), **change})
    with pytest.raises(ValueError, match=message):
        record_from_json(line)


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"schema": 1}', "curl[71]"])
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (json's own among them)
        record_from_json(line)


def test_a_stream_that_fails_is_told_of_once() -> None:
    class Full(io.StringIO):
        tries = 0

        def write(self, text: str) -> int:
            self.tries += 1
            raise OSError(errno.ENOSPC, "full")

    stream, said = Full(), []
    writer = TraceWriter(stream, lost=said.append)
    for _ in range(3):
        writer.write(ALLOWED)
    assert [error.errno for error in said] == [errno.ENOSPC]
    assert stream.tries == 1
