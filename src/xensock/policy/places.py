"""Where in a TOML document (v1.0.0) each key and value stands, so that errors can point there.

The document is read by `tomllib`, which judges it; this follows what was found good and notes places alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

Path = tuple[str | int, ...]  # keys of tables, indexes of arrays

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANK = re.compile(r"[ \t]*")
_SCALAR = re.compile(r"[^,\]\}#\r\n]+")
_BASIC = re.compile(r'"(?:[^"\\]|\\.)*"')
_LITERAL = re.compile(r"'[^']*'")
_LONG_BASIC = re.compile(r'"""(?:[^\\]|\\.)*?"""(?!")', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''.*?'''(?!')", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """A line and a column, from 1; columns count characters."""

    line: int
    column: int


@dataclass(slots=True)
class Places:
    """The places of keys, and of the values they have."""

    keys: dict[Path, Place] = field(default_factory=dict)
    values: dict[Path, Place] = field(default_factory=dict)

    def of(self, path: Path, *, key: bool = False) -> Place:
        """The place of a value, or of its key; of what it is in, where it has none of its own."""
        first, second = (self.keys, self.values) if key else (self.values, self.keys)
        while path:
            place = first.get(path) or second.get(path)
            if place is not None:
                return place
            path = path[:-1]
        return Place(1, 1)


def find(text: str) -> Places:
    """The places in a document that `tomllib` has read without an error."""
    return _Scanner(text).document()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found = Places()
        self.counts: dict[Path, int] = {}  # elements of arrays of tables
        self.ends = [at for at, char in enumerate(text) if char == "\n"]

    def document(self) -> Places:
        table: Path = ()
        while True:
            self.skip(_SPACE)
            if self.at >= len(self.text):
                return self.found
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)

    def header(self) -> Path:
        start, several = self.place(), self.text.startswith("[[", self.at)
        self.at += 1 + several
        self.skip(_BLANK)
        keys = self.dotted()
        path = (*self.resolved(tuple(keys[:-1])), keys[-1])
        if several:
            self.found.keys.setdefault(path, start)
            number = self.counts[path] = self.counts.get(path, -1) + 1
            path += (number,)
        self.found.keys.setdefault(path, start)
        self.found.values.setdefault(path, start)
        self.at = self.text.index("]", self.at) + 1 + several
        return path

    def resolved(self, keys: Path) -> Path:
        """The path of a table whose name may go through arrays of tables: their last elements are meant."""
        path: Path = ()
        for key in keys:
            path += (key,)
            if path in self.counts:
                path += (self.counts[path],)
        return path

    def pair(self, table: Path) -> None:
        start = self.place()
        path = table
        for key in self.dotted():
            path += (key,)
            self.found.keys.setdefault(path, start)
        self.at = self.text.index("=", self.at) + 1
        self.value(path)

    def dotted(self) -> list[str]:
        keys = [self.key()]
        while True:
            self.skip(_BLANK)
            if not self.text.startswith(".", self.at):
                return keys
            self.at += 1
            self.skip(_BLANK)
            keys.append(self.key())

    def key(self) -> str:
        if self.text[self.at] in "\"'":
            import tomllib

            literal = self.take(_BASIC if self.text[self.at] == '"' else _LITERAL)
            return str(tomllib.loads(f"key = {literal}")["key"])
        return self.take(_BARE)

    def value(self, path: Path) -> None:
        self.skip(_BLANK)
        self.found.values[path] = self.place()
        first = self.text[self.at]
        if first == "[":
            self.array(path)
        elif first == "{":
            self.inline(path)
        elif first == '"':
            self.take(_LONG_BASIC if self.text.startswith('"""', self.at) else _BASIC)
        elif first == "'":
            self.take(_LONG_LITERAL if self.text.startswith("'''", self.at) else _LITERAL)
        else:
            self.take(_SCALAR)

    def array(self, path: Path) -> None:
        self.at += 1
        number = 0
        while True:
            self.skip(_SPACE)
            if self.text[self.at] == "]":
                break
            self.value((*path, number))
            number += 1
            self.skip(_SPACE)
            if self.text[self.at] == ",":
                self.at += 1
        self.at += 1

    def inline(self, path: Path) -> None:
        self.at += 1
        while True:
            self.skip(_BLANK)
            if self.text[self.at] == "}":
                break
            self.pair(path)
            self.skip(_BLANK)
            if self.text[self.at] == ",":
                self.at += 1
        self.at += 1

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        assert match is not None  # tomllib has read it
        self.at = match.end()
        return match[0]

    def skip(self, pattern: re.Pattern[str]) -> None:
        self.take(pattern)

    def place(self) -> Place:
        from bisect import bisect_left

        line = bisect_left(self.ends, self.at)
        before = self.ends[line - 1] + 1 if line else 0
        return Place(line + 1, self.at - before + 1)
