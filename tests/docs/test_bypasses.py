"""Known bypasses of other tools, as docs/security.md lists them: each has a test, and attempts that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from named import is_defined

ROOT = Path(__file__).parents[2]
TRIES = ROOT / "tests" / "ways" / "tries"


def rows() -> list[list[str]]:
    """The cells of the table."""
    text = (ROOT / "docs" / "security.md").read_text()
    section = text.partition("\n## Known bypasses of others\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def attempts() -> set[str]:
    """The names of all attempts; those of a loop up to what is put in."""
    files = "".join(path.read_text() for path in TRIES.glob("*.py"))
    named = re.findall(r'\battempt\(f?"([^"{]+)(?:\{\w+\})?"\)', files)
    return {name.strip() for name in named}


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].split(",")[0].split(":")[0])
def test_each_has_a_test(row: list[str]) -> None:
    where, what, here = row
    assert where
    assert what
    names = re.findall(r"`([^`]+)`", here)
    tests = [name.split("::") for name in names if name.startswith("tests/")]
    assert tests
    for file, function in tests:
        assert is_defined(ROOT / file, function), function
    tried = [name.removesuffix(" …") for name in names if not name.startswith("tests/")]
    assert [name for name in tried if name not in attempts()] == []
    assert not tried or ["tests/ways/test_attempts.py", "test_attempts"] in tests


def test_tools_that_must_be_among_them() -> None:
    named = " ".join(where for where, _, _ in rows()).lower()
    wanted = ("sandlock", "sandbox-runtime", "bypass4netns", "slim", "tsi", "ld_preload")
    assert [tool for tool in wanted if tool not in named] == []
