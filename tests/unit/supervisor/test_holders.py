"""Who holds a socket: found by looking, and where looking can be left out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from xensock.supervisor import holders

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[holders.Holders]:
    """This machine's own processes and network stand for a guest's."""
    monkeypatch.setattr(holders, "_group", lambda tid, level: (str(tid), str(tid)))
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    guest: Any = SimpleNamespace(proc=proc, socket=socket.socket, init="1", level=1)
    opened = holders.Holders(guest)
    yield opened
    opened.close()
    os.close(proc)


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with socket.socket() as made:
        yield made


def keep(sock: socket.socket) -> subprocess.Popen[bytes]:
    """A process that inherits the socket and holds it until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[sock.fileno()]
    )


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def test_alone(seen: holders.Holders, sock: socket.socket) -> None:
    assert not seen.elsewhere(os.getpid(), sock, None)
    assert not seen.elsewhere(os.getpid(), sock, (os.getpid(), now()))
    with socket.socket(fileno=os.dup(sock.fileno())):
        assert not seen.elsewhere(os.getpid(), sock, None)


@pytest.mark.parametrize("fresh", [True, False])
def test_held_by_a_younger_process(seen: holders.Holders, sock: socket.socket, fresh: bool) -> None:
    born = (os.getpid(), now()) if fresh else None
    with keep(sock) as child:
        assert seen.elsewhere(os.getpid(), sock, born)
        child.communicate(b"")
    assert not seen.elsewhere(os.getpid(), sock, born)


def test_older_processes_are_left_out_for_a_moment_only(
    seen: holders.Holders, sock: socket.socket
) -> None:
    with keep(sock) as child:
        time.sleep(3 * holders.TICK_NS / 1e9)
        assert not seen.elsewhere(os.getpid(), sock, (os.getpid(), now()))
        assert seen.elsewhere(os.getpid(), sock, (os.getpid(), now() - 2 * holders.MOMENT_NS))
        assert seen.elsewhere(os.getpid(), sock, (child.pid, now()))  # another made it
        child.communicate(b"")


def test_under_way(seen: holders.Holders, sock: socket.socket) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"only bytes")
        assert not seen.elsewhere(os.getpid(), sock, (os.getpid(), now()))
        socket.send_fds(ours, [b"x"], [sock.fileno()])
        assert seen.elsewhere(os.getpid(), sock, (os.getpid(), now()))
        _, fds, _, _ = socket.recv_fds(theirs, 100, 1)
        for fd in fds:
            os.close(fd)
        assert not seen.elsewhere(os.getpid(), sock, (os.getpid(), now()))


def test_a_thread_that_is_gone() -> None:
    assert holders._group(2**22 + 1, 1) == ("", "")
    assert holders._group(os.getpid(), 1)[0] == str(os.getpid())
