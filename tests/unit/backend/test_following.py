"""A backend that follows one that was killed: what it does before others may see it, and after."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, TypeAlias

import pytest
from test_keeper import alive, ask

from backkit import Serving, until
from xensock.backend import keeper
from xensock.backend.keeper import JOURNAL, Keeper
from xensock.pvcalls.keeping import Journal
from xensock.pvcalls.takeover import Takeover
from xensock.transport import local_back
from xensock.wire import local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Following: TypeAlias = "Callable[..., tuple[Kept, Callable[[], None]]]"

# Takes a frontend, notes it or not, and waits to be killed.
OLD = """
import socket, sys
from xensock import _core
from xensock.pvcalls.keeping import Journal
from xensock.wire import local
ours, listener = (socket.socket(fileno=int(each)) for each in sys.argv[1:3])
taken, _ = listener.accept()
journal = Journal(lambda: [], print)
if len(sys.argv) > 3:
    journal.note("session", 1, taken.fileno(), 1, 0)
    journal.note("said", 1, taken.recv(1000), [])
pid = _core.keeper_start(ours.fileno(), journal.fd)
print(pid, flush=True)
sys.stdin.read()
"""
HELLO = local.encode(local.Hello("tester"))


class Kept:
    """What a holder has of a backend that was killed, and the frontend of that."""

    def __init__(self, path: str, *noted: str) -> None:
        self.listener = local_back.listen(path)
        self.front = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.front.settimeout(10)
        self.front.connect(path)
        self.front.send(HELLO)
        theirs, self.holders = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        fds = theirs.fileno(), self.listener.fileno()
        command = [sys.executable, "-c", OLD, *map(str, fds), *noted]
        with subprocess.Popen(
            command, pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            theirs.close()
            assert process.stdout is not None
            self.pid = int(process.stdout.readline())
            process.kill()
        assert ask(self.holders, JOURNAL)[0] == self.pid
        self.dropped: Callable[[], None] = self.holders.close

    # The holder's store, as the next backend speaks to it.

    def keep(self, name: str, fd: int) -> bool:
        del name, fd
        return True

    def drop(self, name: str) -> None:
        if name == "rings-1":
            self.dropped()

    def close(self) -> None:
        """There is nothing to close."""

    def said(self) -> list[type]:
        """What the backend has told the frontend so far."""
        found = []
        while select.select([self.front], [], [], 0)[0] and (packet := self.front.recv(65536)):
            found.append(type(local.decode_back(packet)))
        return found


@pytest.fixture
def following(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Following]:
    """Makes what a backend left, and a function by which the next one takes over."""
    with contextlib.ExitStack() as stack:

        def make(*noted: str) -> tuple[Kept, Callable[[], None]]:
            kept = Kept(str(tmp_path / "s"), *noted)
            stack.callback(kept.listener.close)
            stack.callback(kept.front.close)
            stack.callback(kept.holders.close)
            monkeypatch.setattr(keeper, "Store", lambda: kept)
            found = {"rings-1": os.dup(kept.holders.fileno())}
            monkeypatch.setattr(keeper, "inherited", lambda: found)
            serving = stack.enter_context(Serving())
            made = serving.call(Keeper, serving.backend, [kept.listener])
            stack.callback(lambda: serving.call(made.close))
            return kept, lambda: serving.call(made.start)

        yield make


def test_a_frontend_that_was_taken_and_not_noted_is_served(
    following: Following,
) -> None:
    kept, start = following()
    start()
    assert local.decode_back(kept.front.recv(65536)) == local.Welcome()
    assert isinstance(local.decode_back(kept.front.recv(65536)), local.Nodes)


def test_the_old_keeper_has_ended_before_anybody_is_served(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the ports that are released would still be taken."""
    kept, start = following("noted")
    lives: list[bool] = []
    monkeypatch.setattr(Takeover, "end", lambda takeover: lives.append(alive(kept.pid)))
    # The holder does what it is told a while later.
    kept.dropped = threading.Timer(0.2, kept.holders.close).start
    start()
    assert lives == [False]


@pytest.mark.parametrize("failing", ["takeover.Takeover._stray", "serving.session.Session.go_on"])
def test_what_cannot_be_taken_over_is_told_so_at_the_end(
    following: Following, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Until then the backend that comes after this one could do it."""
    kept, start = following("noted")
    before: list[list[type]] = []

    def fail(*args: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(f"xensock.pvcalls.{failing}", fail)

    def dropped() -> None:
        before.append(kept.said())
        kept.holders.close()

    kept.dropped = dropped
    start()
    assert before == [[]]
    assert local.Goodbye in kept.said()
    if failing.startswith("takeover"):
        until(lambda: kept.front.recv(1) == b"")


def test_guests_are_served_on_where_no_journal_can_be_written(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, start = following("noted")
    with monkeypatch.context() as patch:

        def fail(journal: Journal) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(Journal, "rewrite", fail)
        start()
    assert local.Nodes in kept.said()
