"""Questions to other backends: one that hangs holds up its own, and those who ask the same get one answer."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from xensock.loop import Loop
from xensock.supervisor.afar import Afar

if TYPE_CHECKING:
    from concurrent.futures import Future


def test_who_hangs_holds_up_nobody_else() -> None:
    go_on = threading.Event()
    with closing(Afar()) as afar:
        hanging = [afar.ask("one", number, lambda: go_on.wait(20)) for number in range(100)]
        try:
            assert afar.ask("other", 0, lambda: "answer").result(20) == "answer"
            assert not any(each.done() for each in hanging)
        finally:
            go_on.set()
        assert all(each.result(20) for each in hanging)


def test_the_same_question_is_asked_once_at_a_time() -> None:
    go_on, asked = threading.Event(), list[int]()

    def question() -> int:
        asked.append(1)
        go_on.wait(20)
        return len(asked)

    with closing(Afar()) as afar:
        answers = [afar.ask("one", "it", question) for _ in range(10)]
        go_on.set()
        assert [each.result(20) for each in answers] == [1] * 10
        assert afar.ask("one", "it", question).result(20) == 2, "it may be another answer by now"


def test_failures_are_told_to_all() -> None:
    def question() -> None:
        raise OSError(5, "no")

    with closing(Afar()) as afar:
        for _ in range(2):
            with pytest.raises(OSError, match="no"):
                afar.ask("one", "it", question).result(20)


def test_nothing_is_asked_after_the_end() -> None:
    afar = Afar()
    afar.close()
    with pytest.raises(RuntimeError):
        afar.ask("one", "it", lambda: None)


def test_the_end_waits_for_what_is_to_be_told() -> None:
    """Also for what is asked next, by who was told."""
    loop, go_on, told = Loop("test"), threading.Event(), list[str]()

    def first(answer: Future[str]) -> None:
        told.append(answer.result())
        afar.tell(loop, "one", "next", lambda: "next", lambda answer: told.append(answer.result()))

    def question() -> str:
        go_on.wait(20)
        return "first"

    with closing(Afar()) as afar:
        afar.tell(loop, "one", "it", question, first)
        assert not afar.settle(0.01)
        go_on.set()
        assert afar.settle(20)
        assert told == ["first", "next"]
        loop.stop()
