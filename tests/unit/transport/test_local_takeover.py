"""A session whose backend is killed: another process goes on with it, and the frontend does not notice."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_local_back import close, give, make_port, send

from xensock.transport.base import PAGE, Limits, ProtocolError
from xensock.transport.budget import DESCRIPTORS
from xensock.transport.local_back import LocalBackSession, listen, taken_over
from xensock.wire import local

if TYPE_CHECKING:
    from collections.abc import Iterator


class KilledError(Exception):
    """Here the backend ends."""


class Pair:
    """A frontend's socket, and the backend's session with what it has written down."""

    def __init__(self) -> None:
        self.front, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.setblocking(False)
        self.back = LocalBackSession(self.theirs, 1, 2, Limits())
        self.said: list[tuple[bytes, list[int]]] = []
        self.killed = False
        self.back.told = self.told

    def told(self, packet: bytes, fds: list[int]) -> None:
        self.said.append((packet, list(fds)))
        if self.killed:
            raise KilledError

    def next(self) -> LocalBackSession:
        """The next backend's session; what the one before had is open in a process that keeps it."""
        last = self.said[-1][0] if self.said else b""
        said = [(packet, [os.dup(fd) for fd in fds]) for packet, fds in self.said]
        sock = socket.socket(fileno=os.dup(self.theirs.fileno()))
        made = LocalBackSession.go_on(sock, 1, 2, said, last, Limits())
        made.told = self.told
        self.killed = False
        self.back.close()
        self.back = made
        self.theirs = sock
        return made


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.front.close()
    made.back.close()


def test_everything_that_it_had_done_is_there(pair: Pair) -> None:
    send(pair.front, local.Hello("guest"))
    send(pair.front, local.Write({"state": "3"}))
    give(pair.front, 5, 2)
    port = make_port(pair.front, 7)
    assert pair.back.receive()
    with pair.back.map([6]) as page:
        page[:5] = b"there"
    again = pair.next()
    assert (again.guest, dict(again.nodes)) == ("guest", {"state": "3"})
    with again.map([5, 6]) as pages:
        assert bytes(pages[PAGE : PAGE + 5]) == b"there"
    event = again.bind(7)
    os.eventfd_write(port[0], 1)
    assert event.clear()
    event.close()
    close(port)
    assert local.decode_back(pair.front.recv(100)) == local.Welcome()
    # What it says of itself is what the next one needs.
    assert {packet for packet, _ in again.said()} == {packet for packet, _ in pair.said}


def test_one_that_cannot_go_on_leaves_nothing_behind(pair: Pair) -> None:
    send(pair.front, local.Hello("guest"))
    give(pair.front, 5, 2)
    close(make_port(pair.front, 7))
    give(pair.front, 20, 2)
    assert pair.back.receive()
    hello, memory, port, more = pair.said
    before, used = set(os.listdir("/proc/self/fd")), DESCRIPTORS.used
    copies = [(packet, [os.dup(fd) for fd in fds]) for packet, fds in (memory, port, more)]
    said = [(hello[0], []), *copies[:2], (memory[0], [os.dup(memory[1][0])]), copies[2]]
    sock = socket.socket(fileno=os.dup(pair.theirs.fileno()))
    with pytest.raises(ProtocolError, match="granted already"):
        LocalBackSession.go_on(sock, 1, 2, said, b"", Limits())
    assert (set(os.listdir("/proc/self/fd")), DESCRIPTORS.used) == (before, used)


def test_a_frontend_that_another_process_took(tmp_path: Path) -> None:
    """It is one as long as nobody has heard it."""
    listener, other = (listen(str(tmp_path / name)) for name in ("one", "other"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as front:
        front.connect(str(tmp_path / "one"))
        at = socket.socket(fileno=os.dup(listener.fileno()))
        taken, _ = at.accept()
        assert not listener.took(taken)
        send(front, local.Hello("guest"))
        assert [each.took(taken) for each in (listener, other)] == [True, False]
        assert not listener.took(at)
        assert not listener.took(front)
        session = listener.admit(taken)
        assert session.receive()
        assert (session.guest, session.pid) == ("guest", os.getpid())
        send(front, local.Write({"state": "3"}))
        assert not listener.took(taken)
        session.close()
        at.close()
    listener.close()
    other.close()


@pytest.mark.parametrize("what", ["hello", "memory", "port", "write"])
def test_a_message_that_was_written_down_only(pair: Pair, what: str) -> None:
    """It waits in the socket still, and is not done twice."""
    if what != "hello":
        send(pair.front, local.Hello("guest"))
        assert pair.back.receive()
        assert local.decode_back(pair.front.recv(100)) == local.Welcome()
    pair.killed = True
    fds: list[int] = []
    match what:
        case "hello":
            send(pair.front, local.Hello("guest"))
        case "memory":
            give(pair.front, 5, 2)
        case "port":
            fds = make_port(pair.front, 7)
        case "write":
            send(pair.front, local.Write({"state": "3"}))
    with pytest.raises(KilledError):
        pair.back.receive()
    again = pair.next()
    send(pair.front, local.Write({"more": "words"}))
    assert again.receive()
    assert dict(again.nodes)["more"] == "words"
    if what == "hello":
        assert local.decode_back(pair.front.recv(100)) == local.Welcome()
    if what == "memory":
        again.map([5]).release()
        give(pair.front, 5, 2)
        with pytest.raises(ProtocolError, match="granted already"):
            again.receive()
    close(fds)


def own_mappings() -> int:
    """How many there are that a child of fork(2) does not get (proc(5), VmFlags)."""
    flags = [
        line for line in Path("/proc/self/smaps").read_text().splitlines() if "VmFlags" in line
    ]
    return sum("dc" in line.split() for line in flags)


@pytest.mark.parametrize("kept", [True, False])
def test_memory_is_not_kept_by_who_keeps_descriptors(pair: Pair, kept: bool) -> None:
    if not kept:
        pair.back.told = None
    send(pair.front, local.Hello("guest"))
    give(pair.front, 5, 2)
    assert pair.back.receive()
    before = own_mappings()
    with pair.back.map([5]):
        assert own_mappings() == before + kept


def test_the_listener_stays_where_it_is(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    first = listen(path)
    for stays in (True, False):
        sock = socket.socket(fileno=os.dup(first.fileno()))
        second = taken_over(sock, path)
        second.stays = stays
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as front:
            front.connect(path)
            session = second.accept()
            assert session is not None
            session.close()
        second.close()
        assert os.path.exists(path) is stays
    first.close()
