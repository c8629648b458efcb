"""--ask: the questions and the terminal."""

from __future__ import annotations

import os
import pty
import threading
import tty

import pytest

from xensock.cli import prompting
from xensock.cli.errors import UserError
from xensock.cli.prompting import Prompts, at_terminal


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> object:
    master, slave = pty.openpty()
    tty.setraw(slave)
    monkeypatch.setattr(prompting, "TERMINAL", os.ttyname(slave))
    yield master
    os.close(master)
    os.close(slave)


def typed(master: int, *keys: bytes) -> threading.Thread:
    """Answer each question with the next keys."""

    def work() -> None:
        for key in keys:
            seen = b""
            while not seen.endswith(prompting.ANSWERS.encode()):
                seen += os.read(master, 4096)
            os.write(master, key)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_answers_by_first_letter(terminal: int) -> None:
    for keys, word in ((b"o\n", "once"), (b"Always\n", "always"), (b"n", "never")):
        thread = typed(terminal, b"?\n", keys)
        assert at_terminal("x\x1b[2J wants") == word
        thread.join()


def test_nobody_is_left_to_ask(terminal: int) -> None:
    prompts = Prompts()
    prompts._near.shutdown(2)
    assert prompts.ask("x").result(60) == ""
    assert prompts.ask("y").result(60) == ""
    prompts._far.close()


def test_without_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(prompting, "TERMINAL", f"{tmp_path}/none")
    with pytest.raises(UserError, match="no terminal"):
        Prompts()
    assert at_terminal("x") == ""
