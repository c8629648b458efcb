"""Progress is for terminals."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from xensock.bench.progress import Progress

if TYPE_CHECKING:
    import pytest


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    progress = Progress(out)
    progress.tell("one")
    progress.tell("two")
    progress.clear()
    assert out.getvalue() == "\r\x1b[Kone …\r\x1b[Ktwo …\r\x1b[K"


def test_nobody_else_sees_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    for out in (io.StringIO(), Terminal()):
        progress = Progress(out)
        progress.tell("one")
        progress.clear()
        assert out.getvalue() == ""
