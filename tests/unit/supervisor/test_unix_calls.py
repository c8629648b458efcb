"""Unix sockets' connects where their user may have no more threads."""

from __future__ import annotations

import errno
import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from xensock.supervisor.question import Question
from xensock.supervisor.unix_calls import UnixCalls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.supervisor.supervisor import Supervisor


class Sup:
    """A supervisor of a guest in this very network, that keeps its answers."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.parts = SimpleNamespace(guest=SimpleNamespace(socket=socket.socket))

    def answer(self, q: Question, error: int) -> None:
        self.answers.append(error)


@pytest.fixture
def sup() -> Sup:
    return Sup()


@pytest.fixture
def calls(sup: Sup) -> Iterator[UnixCalls]:
    made = UnixCalls(cast("Supervisor", sup))
    yield made
    made.close()


def no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_without_a_thread_a_call_is_answered_and_nothing_is_left(
    sup: Sup, calls: UnixCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        for _ in range(3):
            with socket.socket(socket.AF_UNIX) as sock:
                arguments: Any = (1, 1, 42, (0,) * 6, sock, False, b"\1\0/nowhere", 0)
                calls.connect(cast("Supervisor", sup), Question(*arguments))
                assert sock.fileno() == -1  # it was taken over, and closed
    assert sup.answers == [errno.EAGAIN] * 3
