"""The audit log: its schema, rotation, crashes, what finds no room, files that cannot be written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xensock.calls.record import Record, closed
from xensock.observe import audit
from xensock.observe.audit import AuditError, AuditLog

if TYPE_CHECKING:
    from pathlib import Path

CALL = Record(
    1.5, "g", 7, "curl", "connect", "198.51.100.7:80", "web.test", "allow", "any", connection=3
)
END = closed(CALL, 4.0, 10, None, errno.ECONNRESET)
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


def wrong(value: Any, schema: dict[str, Any]) -> str:
    """Why a value does not fit a JSON Schema, of the words that ours uses; empty if it does."""
    if "const" in schema and value != schema["const"]:
        return f"{value!r} is not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{value!r} is none of {schema['enum']}"
    if "type" in schema:
        named = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        kinds = tuple(kind for name in named for kind in TYPES[name])
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            return f"{value!r} is no {schema['type']}"
    if "minimum" in schema and value is not None and value < schema["minimum"]:
        return f"{value!r} is less than {schema['minimum']}"
    for name in schema.get("required", ()):
        if name not in value:
            return f"there is no {name}"
    for name, inner in schema.get("properties", {}).items():
        if name in value and (found := wrong(value[name], inner)):
            return f"{name}: {found}"
    choices = [wrong(value, inner) for inner in schema.get("oneOf", ())]
    return "" if not choices or choices.count("") == 1 else "; ".join(choices)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log, each of which fits the schema."""
    text = path.read_bytes()
    assert text.endswith(b"\n")
    assert text.isascii()
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        assert not wrong(line, audit.schema()), line
    return found


def test_a_record_becomes_a_line(tmp_path: Path) -> None:
    log = AuditLog(str(tmp_path / "log"))
    log.record(CALL)
    log.record(END)
    log.close()
    opened, call, end = lines(tmp_path / "log")
    assert (opened["kind"], opened["pid"], opened["seq"]) == ("open", os.getpid(), 1)
    assert {name: call[name] for name in ("kind", "guest", "pid", "verb", "target", "name")} == {
        "kind": "call", "guest": "g", "pid": 7, "verb": "connect", "target": "198.51.100.7:80", "name": "web.test",
    }  # fmt: skip
    assert (call["sent"], call["received"], call["connection"]) == (None, None, 3)
    assert {name: end[name] for name in ("kind", "seq", "connection", "error", "duration")} == {
        "kind": "end", "seq": 3, "connection": 3, "error": errno.ECONNRESET, "duration": 2.5,
    }  # fmt: skip
    assert (end["sent"], end["received"]) == (10, None)
    assert os.stat(tmp_path / "log").st_mode & 0o777 == 0o600


def test_the_schema_refuses_what_is_no_line() -> None:
    good = {"schema": 1, "seq": 1, "kind": "dropped", "time": 1.0, "records": 3}
    assert not wrong(good, audit.schema())
    for bad in ({"records": 0}, {"schema": 2}, {"kind": "else"}, {"time": "now"}, {"seq": True}):
        assert wrong({**good, **bad}, audit.schema()), bad
    assert wrong({**good, "kind": "call"}, audit.schema())


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=20))
def test_whatever_a_guest_calls_itself_is_ascii_on_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.mktemp("audit") / "log"
    log = AuditLog(str(path))
    log.record(Record(1.0, text, 7, text, "connect", text, text))
    log.close()
    assert lines(path)[1]["program"] == text
    assert b"\x1b" not in path.read_bytes()
    assert b"\x7f" not in path.read_bytes()


def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AuditLog(str(path))
    log.record(CALL)
    log.close()
    whole = path.read_bytes()
    torn = whole[20:70]
    path.write_bytes(whole + torn)
    AuditLog(str(path)).close()
    found = lines(path)
    assert [line["kind"] for line in found] == ["open", "call", "open"]
    assert found[2]["torn"] == len(torn)
    path.write_bytes(b"x" * 200_000)  # nothing whole at all
    AuditLog(str(path)).close()
    assert lines(path)[0]["torn"] == 200_000


def test_what_was_written_survives_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "log"
    script = f"""
import os, signal, threading, time
from xensock.calls.record import Record
from xensock.observe.audit import AuditLog
log = AuditLog({str(path)!r})
n = 0
while True:
    n += 1
    log.record(Record(1.0, "g", n, "p", "connect", "t"))
    if n % 50 == 0:
        time.sleep(0.001)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        deadline = time.monotonic() + 30
        while not path.exists() or path.stat().st_size < 100_000:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    AuditLog(str(path)).close()
    found = lines(path)
    numbers = [line["pid"] for line in found if line["kind"] == "call"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert [line["seq"] for line in found[:-1]] == list(range(1, len(found)))


def test_rotation_keeps_every_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = AuditLog(str(path), size=8000, keep=400)
    for number in range(1, 1001):
        log.record(Record(1.0, "g", number, "p", "connect", "t"))
        if number % 20 == 0:
            wait(lambda: not log._waiting)
    log.close()
    old = sorted(tmp_path.glob("log.*"), key=lambda p: -int(p.suffix[1:]))
    assert len(old) > 5
    assert all(p.stat().st_size <= 8000 for p in old)
    calls = [line for p in (*old, path) for line in lines(p) if line["kind"] == "call"]
    assert [line["pid"] for line in calls] == list(range(1, 1001))


def test_a_path_that_is_no_text_stops_nothing(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are lone surrogates in Python (os.fsdecode), which JSON has as escapes."""
    path = tmp_path / "log"
    target = "unix:" + os.fsdecode(b"/run/\x1b[2J\n\x9b\xff\xc2\x9b.sock")
    log = AuditLog(str(path))
    log.record(Record(1.0, "g", 1, "p", "connect", target))
    log.record(CALL)
    log.close()
    assert path.read_bytes().isascii()
    assert not any(byte < 0x20 and byte != 0x0A for byte in path.read_bytes())
    calls = [line for line in lines(path) if line["kind"] == "call"]
    assert [line["target"] for line in calls] == [target, CALL.target]


def test_a_burst_is_rotated_line_by_line(tmp_path: Path) -> None:
    """Records that waited together do not make a file larger than it may be, unless one line does."""
    path = tmp_path / "log"
    log = AuditLog(str(path), size=8000, keep=400)
    long = "t" * 9000
    for number in range(1, 1001):
        log.record(Record(1.0, "g", number, "p", "connect", long if number == 500 else "t"))
    log.close()
    old = sorted(tmp_path.glob("log.*"), key=lambda p: -int(p.suffix[1:]))
    (large,) = [p for p in old if p.stat().st_size > 8000]
    kinds = [(line["kind"], line.get("pid")) for line in lines(large)]
    assert kinds == [("open", os.getpid()), ("call", 500)]
    found = [line for p in (*old, path) for line in lines(p)]
    calls = [line for line in found if line["kind"] == "call"]
    assert [line["pid"] for line in calls] == list(range(1, 1001))
    # Each number once; those of what was recorded ascend, and an open one's may be larger than the next.
    assert sorted(line["seq"] for line in found) == list(range(1, len(found) + 1))
    numbers = [line["seq"] for line in calls]
    assert numbers == sorted(numbers)
    assert [line["seq"] for line in found] != sorted(line["seq"] for line in found)


@pytest.mark.parametrize("keep", [0, 2])
def test_old_logs_go(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "log"
    log = AuditLog(str(path), size=4096, keep=keep)
    for _ in range(200):
        log.record(CALL)
        wait(lambda: not log._waiting)
    log.close()
    assert {p.name for p in tmp_path.iterdir()} == {"log", "log.1", "log.2"} if keep else {"log"}


def test_two_backends_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs = [AuditLog(str(path), size=30_000, keep=100) for _ in range(2)]

    def write(log: AuditLog, guest: str) -> None:
        for number in range(500):
            log.record(Record(1.0, guest, number, "p", "connect", "t"))
            if number % 25 == 0:
                time.sleep(0.001)

    threads = [threading.Thread(target=write, args=(log, f"g{at}")) for at, log in enumerate(logs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for log in logs:
        log.close()
    old = sorted(tmp_path.glob("log.*"), key=lambda p: -int(p.suffix[1:]))
    found = [line for p in (*old, path) for line in lines(p) if line["kind"] == "call"]
    for guest in ("g0", "g1"):
        assert [line["pid"] for line in found if line["guest"] == guest] == list(range(500))


def test_what_finds_no_room_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "GATHER_S", 0.2)
    log = AuditLog(str(tmp_path / "log"), queue=10)
    for _ in range(35):
        log.record(CALL)
    assert log.full
    log.close()
    assert not log.full
    found = lines(tmp_path / "log")
    assert [line["kind"] for line in found] == ["open", *["call"] * 10, "dropped"]
    assert found[-1]["records"] == 25


def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records wait for it as long as there is room, and are counted then; who made them goes on."""
    log = AuditLog(str(tmp_path / "log"), queue=10)
    stuck, go = threading.Event(), threading.Event()
    whole = os.write

    def hang(fd: int, data: bytes) -> int:
        if fd == log._fd:
            stuck.set()
            go.wait()
        return whole(fd, data)

    monkeypatch.setattr(os, "write", hang)
    log.record(CALL)
    assert stuck.wait(30)
    calls = threading.Thread(target=lambda: [log.record(CALL) for _ in range(50)])
    calls.start()
    calls.join(30)
    waited, full = calls.is_alive(), log.full
    go.set()
    calls.join()
    log.close()
    assert (waited, full) == (False, True)
    found = lines(tmp_path / "log")
    kept = sum(line["kind"] == "call" for line in found)
    lost = sum(line["records"] for line in found if line["kind"] == "dropped")
    assert kept + lost == 51
    assert 0 < lost <= 40


def test_a_full_disk_holds_records_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "RETRY_S", 0.01)
    told: list[str] = []
    log = AuditLog(str(tmp_path / "log"), complain=told.append)
    whole, room = os.write, [60]

    def short(fd: int, data: bytes) -> int:
        if fd != log._fd:
            return whole(fd, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = whole(fd, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", short)
    log.record(CALL)
    log.record(END)
    wait(lambda: log.full)
    assert told == [f"cannot write the audit log {tmp_path / 'log'}: No space left on device"]
    room[0] = 1 << 20
    wait(lambda: not log.full)
    log.close()
    assert [line["kind"] for line in lines(tmp_path / "log")] == ["open", "call", "end"]


@pytest.mark.parametrize("path", ["{}/nowhere/log", "{}", "/dev/null"])
def test_a_file_that_cannot_be_a_log(tmp_path: Path, path: str) -> None:
    with pytest.raises(AuditError) as raised:
        AuditLog(path.format(tmp_path))
    assert raised.value.filename == path.format(tmp_path)


def wait(for_: Any) -> None:
    deadline = time.monotonic() + 30
    while not for_():
        assert time.monotonic() < deadline
        time.sleep(0.002)
