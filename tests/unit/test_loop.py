"""The relay's thread."""

from __future__ import annotations

import os
import threading
import time

import pytest

from xensock.loop import IN, Loop


@pytest.fixture
def loop():
    made = Loop("test")
    yield made
    made.stop()


def test_descriptors(loop):
    r, w = os.pipe()
    got = threading.Event()
    said = []

    def read(events: int) -> None:
        assert events & IN
        said.append(os.read(r, 9))
        got.set()

    loop.add(r, IN, read)
    os.write(w, b"one")
    assert got.wait(5)
    loop.remove(r)
    loop.remove(r)
    os.write(w, b"two")
    done = threading.Event()
    loop.later(0, done.set)
    assert done.wait(5)
    assert said == [b"one"]
    os.close(r)
    os.close(w)


def test_only_who_watches_removes(loop):
    """A number may be another file's by the time that somebody removes it."""
    r, w = os.pipe()
    got = threading.Event()

    def first(events: int) -> None: ...

    def second(events: int) -> None:
        os.read(r, 9)
        got.set()

    loop.add(r, IN, first)
    assert loop.remove(r, first)
    loop.add(r, IN, second)
    assert not loop.remove(r, first)
    os.write(w, b"one")
    assert got.wait(5)
    assert loop.remove(r)
    assert not loop.is_current()
    os.close(r)
    os.close(w)


def test_timers_come_in_their_order(loop):
    said, done, start = [], threading.Event(), time.monotonic()
    loop.later(0.06, done.set)
    loop.later(0.04, lambda: said.append("second"))
    loop.later(0, lambda: said.append("first"))
    assert done.wait(5)
    assert said == ["first", "second"]
    assert time.monotonic() - start >= 0.06


def test_a_failing_handler_is_logged_and_harms_no_other(loop, caplog):
    done = threading.Event()
    loop.later(0, lambda: 1 // 0)
    loop.later(0.001, done.set)
    assert done.wait(5)
    assert "ZeroDivisionError" in caplog.text
