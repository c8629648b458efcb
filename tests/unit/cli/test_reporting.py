"""The journal of the installed backend, and reports of faults."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from xensock import __version__
from xensock.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

PATIENCE = 60


def test_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XENSOCK", "local:/secret")
    assert main(["bugreport"]) == 0
    report = capsys.readouterr().out
    assert f"xensock {__version__}\n" in report
    assert "seccomp notification: " in report
    assert "backends 0, guests 0\n" in report
    assert "set in the environment: XENSOCK" in report
    assert "secret" not in report


JOURNAL = """#!/bin/sh
echo "$@"
"""


def test_the_journal_is_asked_for_the_units_messages(tmp_path: Path) -> None:
    journal = tmp_path / "journalctl"
    journal.write_text(JOURNAL)
    journal.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "xensock", "logs", "-f", "-n", "7"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    whose = "" if os.geteuid() == 0 else "--user "
    assert done.stdout == f"{whose}--unit xensock.service --lines 7 --no-pager --follow\n"


def test_without_a_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["logs"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: there is no journal here\n")
    assert "--log-file" in said
