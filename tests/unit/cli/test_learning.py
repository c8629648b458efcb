"""--learn: the file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from xensock.calls.record import Record
from xensock.cli.errors import UserError
from xensock.cli.learning import Lesson

if TYPE_CHECKING:
    from pathlib import Path


def test_the_file_appears_as_a_whole_and_is_replaced(tmp_path: Path) -> None:
    said: list[str] = []
    for port in (80, 81):
        lesson = Lesson(str(tmp_path / "new.toml"))
        record = Record(0.0, "g", 1, "p", "connect", f"192.0.2.1:{port}", decision="allow")
        lesson.learner.record(record)
        lesson.write(said.append)
        assert f"192.0.2.1:{port}" in (tmp_path / "new.toml").read_text()
    assert os.listdir(tmp_path) == ["new.toml"]
    assert not said


def test_nobodys_file_is_lost(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('[[rule]]\nallow = "any"\n')
    with pytest.raises(UserError, match="there is such a file"):
        Lesson(str(mine))
    with pytest.raises(UserError, match="cannot write"):
        Lesson(str(tmp_path))
    with pytest.raises(UserError, match="cannot write"):
        Lesson(str(mine / "below.toml"))
    lesson = Lesson(str(tmp_path / "gone" / ".." / "new.toml"))
    tmp_path.chmod(0o755)
    said: list[str] = []
    (tmp_path / "new.toml").mkdir()
    lesson.write(said.append)
    assert len(said) == 1
