"""What a backend says about itself: levels, forms, a file that does not grow for ever."""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import TYPE_CHECKING

import pytest

from xensock.cli.errors import UserError
from xensock.cli.messages import Lines, Messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger("xensock.test")


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Logging as the test runner has it, afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


def said(capsys: pytest.CaptureFixture[str], quiet: bool = False, verbose: bool = False) -> str:
    Messages(quiet, verbose, "text", None, 4096).begin()
    log.debug("of no interest")
    log.info("%s came", "guest")
    log.warning("it fails")
    return capsys.readouterr().err


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    came, fails = "xensock backend: guest came\n", "xensock backend: it fails\n"
    assert said(capsys) == came + fails
    assert said(capsys, quiet=True) == fails
    assert said(capsys, verbose=True) == "xensock backend: of no interest\n" + came + fails


def record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("xensock", level, "", 0, text, None, None)


def test_forms() -> None:
    assert Lines("text").format(record("evil\x1b[5m")) == "xensock backend: evil\\x1b[5m"
    assert Lines("journald").format(record("it fails", logging.WARNING)) == "<4>it fails"
    told = json.loads(Lines("json").format(record("evil\x1b[5m", logging.ERROR)))
    assert told.pop("time") > 0
    assert told == {"schema": 1, "level": "error", "message": "evil\x1b[5m"}


def test_a_traceback_stays_readable() -> None:
    try:
        raise ValueError("no\x1b")
    except ValueError:
        problem = logging.LogRecord("x", logging.ERROR, "", 0, "it failed", None, sys.exc_info())
    lines = Lines("text").format(problem).splitlines()
    assert lines[0] == "xensock backend: it failed"
    assert lines[-1] == "ValueError: no\\x1b"


def test_a_file_and_the_one_before_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    Messages(False, False, None, str(path), 4096).begin()
    for number in range(500):
        log.info("message %d", number)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "log.1"]
    assert all(each.stat().st_size <= 4096 for each in tmp_path.iterdir())
    assert path.read_text().endswith("xensock backend: message 499\n")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write messages") as error:
        Messages(False, False, None, str(tmp_path / "no" / "log"), 4096).begin()
    assert error.value.hint


def test_the_journal_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(2), "w"))
    with sys.stderr:
        found = os.fstat(sys.stderr.fileno())
        for stream, text in (
            (f"{found.st_dev}:{found.st_ino}", "<6>here\n"),
            (f"{found.st_dev}:{found.st_ino + 1}", "xensock backend: here\n"),
        ):
            monkeypatch.setenv("JOURNAL_STREAM", stream)
            Messages(False, False, None, None, 4096).begin()
            log.info("here")
            sys.stderr.flush()
            assert capfd.readouterr().err == text
