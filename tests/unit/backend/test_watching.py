"""The control socket of a run: what the end of the run leaves to those who asked or watched."""

from __future__ import annotations

import json
import socket
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from xensock.backend import watching
from xensock.backend.watching import GUEST, Watch
from xensock.calls.record import Record
from xensock.observe.tap import Tap
from xensock.supervisor import looking

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xensock.backend.serving import Serving


@pytest.fixture
def tap() -> Tap:
    return Tap()


@pytest.fixture
def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tap: Tap) -> Iterator[Watch]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    serving = cast("Serving", SimpleNamespace(parts=SimpleNamespace(guest=None)))
    made = Watch("guest", serving, tap)
    yield made
    made.close()


def asked(watch: Watch, command: str, **fields: Any) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(30)
    client.connect(watch._path)
    client.sendall(json.dumps({"id": 1, "command": command, **fields}).encode() + b"\n")
    return client


def said(client: socket.socket) -> list[dict[str, Any]]:
    """Every line until the end."""
    with client, client.makefile() as lines:
        return [json.loads(line) for line in lines]


def closing(watch: Watch) -> threading.Thread:
    thread = threading.Thread(target=watch.close)
    thread.start()
    return thread


def test_what_was_asked_before_the_end_is_answered(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is being answered, the other waits for its turn, a third asks nothing and holds nobody up."""
    begun, go_on = threading.Event(), threading.Event()

    def kill(guest: object) -> int:
        begun.set()
        assert go_on.wait(30)
        return 3

    monkeypatch.setattr(looking, "kill", kill)
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(watch._path)
        first = asked(watch, "disconnect", guest=GUEST)
        assert begun.wait(30)
        second = asked(watch, "version")
        while len(watch._ends) < 3:
            time.sleep(0.001)
        end = closing(watch)
        assert watch._closed.wait(30)
        go_on.set()
        assert [answer["processes"] for answer in said(first)] == [3]
        assert [answer["ok"] for answer in said(second)] == [True]
        end.join(30)
        assert not end.is_alive()
        assert said(idle) == []


def test_a_watcher_sees_what_happened_until_the_end(watch: Watch, tap: Tap) -> None:
    watcher = asked(watch, "events")
    while not tap.active:
        time.sleep(0.001)
    for number in range(500):
        tap(Record(time.time(), "g", number, "p", "connect", "t"))
    end = closing(watch)
    told, *events = said(watcher)
    end.join(30)
    assert told["ok"]
    assert [line["event"]["pid"] for line in events] == list(range(500))


def test_who_does_not_read_does_not_hold_up_the_end(
    watch: Watch, tap: Tap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LAST_S", 0.05)
    with asked(watch, "events"):
        while not tap.active:
            time.sleep(0.001)
        for number in range(watching.EVENTS):
            tap(Record(time.time(), "g", number, "p" * 1000, "connect", "t"))
        end = closing(watch)
        end.join(30)
        assert not end.is_alive()
    while tap.active:
        time.sleep(0.001)


def test_without_a_thread_who_asks_is_sent_away_and_the_next_is_answered(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many clients as there may be, so that each place is given back."""
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_thread)
        for _ in range(watching.CLIENTS + 1):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(30)
                client.connect(watch._path)
                assert client.recv(1) == b""
    with asked(watch, "nothing") as client:
        assert json.loads(client.makefile().readline())["id"] == 1


def no_thread(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")
