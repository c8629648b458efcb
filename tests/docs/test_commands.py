"""Every command that README and the documents show is run, as an ordinary user of the test world.

Blocks marked `console`: lines that begin with `$ ` are one shell script, the lines between are what
it must print, `…` standing for anything. `console fails` must end with another status than 0, and
tell what is printed then.
Blocks marked `sh` are scripts as they stand, except those of make targets, which CI calls. Blocks
marked `python` are run by the Python that has XenSock. Each block starts in an empty directory.

example.com stands for a server of the test world, $HOST_ADDRESS for an address of its host.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.internet import World

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.M | re.S)
PATIENCE = 30


class Block(NamedTuple):
    """A block of commands in a document."""

    kind: str
    fails: bool
    script: str
    expected: list[str]


def blocks(text: str) -> Iterator[tuple[int, Block]]:
    """The runnable blocks of a document, each with its line number."""
    for match in BLOCK.finditer(text):
        kind, mark, body = match.groups()
        if kind not in ("console", "sh", "python"):
            continue
        if kind == "sh" and body.startswith("make "):
            continue
        assert mark in (None, "fails"), f"unknown mark {mark!r}"
        script, expected = body, []
        if kind == "console":
            lines = body.splitlines()
            script = "".join(line[2:] + "\n" for line in lines if line.startswith("$ "))
            expected = [line for line in lines if not line.startswith("$ ")]
            assert script, "a console block without a command"
            assert expected or mark != "fails", (
                "anything may go wrong: the block must say what does"
            )
        yield text.count("\n", 0, match.start()) + 1, Block(kind, mark == "fails", script, expected)


def shows(output: str, expected: list[str]) -> bool:
    """Whether the output has these lines, one after the other, with `…` standing for anything."""
    pattern = ""
    for line in expected:
        if line.strip() == "…":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += r".*".join(re.escape(part) for part in line.split("…")) + r" *\n"
    return re.search("^" + pattern if pattern else "", output, re.M) is not None


def cases() -> list[object]:
    return [
        pytest.param(block, id=f"{path.relative_to(ROOT)}:{line}")
        for path in DOCUMENTS
        for line, block in blocks(path.read_text())
    ]


@pytest.fixture
def directory(world: World, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory of the world's ordinary user, with the command where a checkout has it."""
    made = world.directory / f"docs-{abs(hash(request.node.name)):x}"
    (made / ".venv" / "bin").mkdir(parents=True)
    for path in (made, made / ".venv", made / ".venv" / "bin"):
        world.user.own(path)
    try:
        yield made
    finally:
        shutil.rmtree(made)


def _told(pid: int) -> list[str]:
    """What a process is and does, as far as there is still something to read."""
    told = []
    for name in ("cmdline", "stat", "wchan"):
        try:
            told.append(Path(f"/proc/{pid}/{name}").read_text())
        except OSError as error:
            told.append(error.strerror)
    return told


@pytest.mark.parametrize("block", cases())
def test_command(block: Block, world: World, xensock: list[str], directory: Path) -> None:
    command = Path(xensock[0])
    (directory / ".venv" / "bin" / "xensock").symlink_to(command)
    script, *expected = (
        re.sub(r"\bexample\.com\b", "web.test", text) for text in (block.script, *block.expected)
    )
    before = world.host.pids()
    if block.kind == "python":
        argv = [str(command.parent / "python"), "-c", script]
    else:
        # What a block leaves running is ended as Ctrl-C or closing the terminal would.
        ending = "trap 'kill $(jobs -p) 2>/dev/null || :; wait' EXIT\n"
        strict = "" if block.fails else "set -e\n"
        argv = ["bash", "-o", "pipefail", "-c", f"exec 2>&1\n{ending}{strict}{script}"]
    done = world.host.run(
        argv,
        user=world.user.name,
        cwd=directory,
        timeout=PATIENCE,
        env={
            "PATH": f"{command.parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOST_ADDRESS": world.host.addr4,
        },
    )
    output = done.stdout + done.stderr
    assert (done.returncode != 0) is block.fails, f"status {done.returncode}\n{output}"
    assert shows(output, expected), f"not as shown:\n{output}"
    left = {pid: _told(pid) for pid in world.host.pids() - before}
    assert not left, f"processes left behind: {left}"


def test_there_are_commands_in_every_kind_of_document() -> None:
    runnable = {path: len(list(blocks(path.read_text()))) for path in DOCUMENTS}
    assert runnable[ROOT / "README.md"] >= 6
    for kind in ("tutorial", "howto", "reference"):
        assert sum(n for path, n in runnable.items() if kind in path.parts) >= 3


@pytest.mark.parametrize(
    ("output", "expected", "fine"),
    [
        ("a\nb\n", ["a", "b"], True),
        ("a\nb\n", ["a", "c"], False),
        ("a\nx\ny\nb\n", ["a", "…", "b"], True),
        ("a\nb\n", ["a", "…", "b"], True),
        ("took 12 ms\n", ["took … ms"], True),
        ("took 12 s\n", ["took … ms"], False),
        ("ab\n", ["b"], False),
        ("anything\n", [], True),
        ("", ["a"], False),
    ],
)
def test_output_is_compared(output: str, expected: list[str], fine: bool) -> None:
    assert shows(output, expected) is fine


def test_blocks_are_found() -> None:
    text = "x\n```console fails\n$ false\nno\n```\n```sh\nmake test\n```\n```text\n$ true\n```\n"
    assert list(blocks(text)) == [(2, Block("console", True, "false\n", ["no"]))]
