"""--audit: sizes, files that cannot be written, calls that are refused while nothing can be recorded."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

import click
import pytest

from xensock.cli.auditing import Audit, Size, tap_of
from xensock.cli.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from xensock.calls.record import Record
    from xensock.observe.audit import AuditLog


@pytest.mark.parametrize(
    ("text", "size"), [("4096", 4096), ("500K", 512_000), ("64m", 64 << 20), ("1G", 1 << 30)]
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1T", "4095", "1.5M"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no size"):
        Size().convert(text, None, None)


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the audit log") as raised:
        Audit(str(tmp_path / "no" / "log"), 4096, 1, "drop").open(print)
    assert raised.value.cause == "No such file or directory"
    assert raised.value.hint


def test_nothing_wanted() -> None:
    wanted = Audit(None, 4096, 1, "refuse")
    assert wanted.open(print) is None
    assert wanted.gate(None) is None
    assert not tap_of(None, None).active


def test_refusing_while_the_log_is_full(tmp_path: Path) -> None:
    class Log:
        full = False

        def record(self, record: Record) -> None: ...

    log: AuditLog = Log()  # type: ignore[assignment]
    assert Audit("log", 4096, 1, "drop").gate(log) is None
    gate = Audit("log", 4096, 1, "refuse").gate(log)
    assert gate is not None
    assert gate() is None
    log.full = True  # type: ignore[misc]
    refusal = gate()
    assert refusal is not None
    assert (refusal.allowed, refusal.error, refusal.cacheable) == (False, errno.EACCES, False)


def test_a_log_takes_ends_and_a_trace_does_not(tmp_path: Path) -> None:
    from xensock.calls.record import Record, closed

    wanted = Audit(str(tmp_path / "log"), 4096, 1, "drop")
    log, trace = wanted.open(print), list[Record]()
    assert log is not None
    tap = tap_of(trace.append, log)
    call = Record(1.0, "g", 1, "p", "connect", "t", connection=1)
    tap(call)
    tap(closed(call, 2.0, 1, 1, 0))
    log.close()
    assert trace == [call]
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "log").read_text().splitlines()]
    assert kinds == ["open", "call", "end"]
