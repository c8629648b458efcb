"""What a program has closed makes room before anybody is told that there is none."""

from __future__ import annotations

import errno
import os
import socket as standard
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backkit import Serving, until
from xensock.client import room
from xensock.client.attachment import open_link
from xensock.client.room import Leaving
from xensock.client.sockets import socket
from xensock.pvcalls.serving.limits import Limits
from xensock.transport.url import listen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xensock.client.link import Link

SOCKETS = 8
PATIENCE_S = 20


class Small:
    """A backend on which a guest may have few sockets, and links to it."""

    def __init__(self, serving: Serving, url: str, stack: ExitStack) -> None:
        self._serving, self._url, self._stack = serving, url, stack

    def link(self, **how: Any) -> Link:
        made = open_link(self._url, "small", **how)
        self._stack.callback(made.close)
        return made

    def commands(self) -> int:
        return int(self._serving.call(lambda: self._serving.backend.counters().commands))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    with Serving(limits=Limits(sockets=SOCKETS)) as serving, ExitStack() as stack:
        listener = listen(f"local:{tmp_path}/socket")

        def accept() -> None:
            session = listener.accept()
            if session is not None:
                serving.backend.serve(session)

        serving.call(serving.loop.add_reader, listener.fileno(), accept)
        yield Small(serving, listener.url, stack)
        stack.close()
        serving.call(serving.loop.remove_reader, listener.fileno())
        listener.close()


@contextmanager
def held_back(link: Link) -> Iterator[threading.Event]:
    """The thread that releases sockets does nothing until the event is set, as on a machine that is busy."""
    held, go = threading.Event(), threading.Event()
    link.loop.later(0, lambda: (held.set(), go.wait(PATIENCE_S))[0])
    assert held.wait(PATIENCE_S)
    try:
        yield go
    finally:
        go.set()


def make_while_held(small: Small, link: Link, go: threading.Event) -> None:
    """SOCKET is refused while the releases are held back, and succeeds once they are not."""
    with ThreadPoolExecutor(1) as program:
        before = small.commands()
        made = program.submit(lambda: socket(standard.AF_INET, link=link))
        until(lambda: small.commands() > before)
        go.set()
        made.result(PATIENCE_S).close()


def test_closed_connections_make_room(small: Small) -> None:
    link = small.link()
    with standard.create_server(("127.0.0.1", 0)) as server:
        full = [socket(standard.AF_INET, link=link) for _ in range(SOCKETS)]
        for each in full:
            each.connect(server.getsockname())
        with held_back(link) as go:
            full[0].send(b"its last words")
            for each in full:
                each.close()
            assert link.departures._leaving() is Leaving.GONE
            make_while_held(small, link, go)


def test_a_descriptor_that_was_closed_elsewhere_makes_room(small: Small) -> None:
    link = small.link()
    full = [socket(standard.AF_INET, link=link) for _ in range(SOCKETS)]
    with held_back(link) as go:
        standard.close(full[0].detach())
        assert link.departures._leaving() is Leaving.GONE
        make_while_held(small, link, go)
    for each in full[1:]:
        each.close()


def test_connections_of_a_guests_kernel_make_room(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of unmodified programs: whether the program closed its end or half of it does not show."""
    monkeypatch.setattr(room, "HALF_S", PATIENCE_S)
    link = small.link(splices=True)
    with ExitStack() as stack:
        server = stack.enter_context(standard.create_server(("127.0.0.1", 0)))
        near, far = [], []
        for _ in range(SOCKETS):
            made = socket(standard.AF_INET, link=link)
            made.connect(server.getsockname())
            far.append(stack.enter_context(server.accept()[0]))
            with standard.create_server(("127.0.0.1", 0)) as door:
                near.append(standard.create_connection(door.getsockname()))
                made.splice(door.accept()[0], lambda *_: None)
        with held_back(link) as go, ThreadPoolExecutor(1) as peer:
            near[0].close()
            assert link.departures._leaving() is Leaving.HALF
            ends = peer.submit(lambda: (far[0].recv(1), far[0].close()))
            make_while_held(small, link, go)
            assert ends.result(PATIENCE_S) == (b"", None)
        for each in near[1:]:
            each.close()


def test_who_stays_is_not_waited_for(small: Small) -> None:
    link = small.link()
    full = [socket(standard.AF_INET, link=link) for _ in range(SOCKETS)]
    with held_back(link):
        before = small.commands()
        with pytest.raises(OSError, match=os.strerror(errno.ENFILE)):
            socket(standard.AF_INET, link=link)
        assert small.commands() == before + 1
    for each in full:
        each.close()
