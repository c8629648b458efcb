"""The backend's side: what frontends may do to it, and what is left when they are gone."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from xensock.transport import budget
from xensock.transport.base import PAGE, GrantError, Limits, ProtocolError, TransportError
from xensock.transport.budget import Budget
from xensock.transport.local_back import TURN, LocalBackSession, listen
from xensock.transport.local_front import connect
from xensock.transport.pages import make_memory
from xensock.wire import local

if TYPE_CHECKING:
    from pathlib import Path

Raw = tuple[socket.socket, LocalBackSession]


@pytest.fixture
def raw():
    """A frontend that sends what it likes, introduced already."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    back = LocalBackSession(
        theirs, 1, 2, Limits(regions=3, pages=64, mappings=4, ports=2, store_bytes=99)
    )
    send(ours, local.Hello("raw"))
    assert back.receive()
    assert local.decode_back(ours.recv(100)) == local.Welcome()
    yield ours, back
    ours.close()
    back.close()


def send(sock: socket.socket, message: local.Message | bytes, fds: list[int] | None = None) -> None:
    data = message if isinstance(message, bytes) else local.encode(message)
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([data], rights)


def memory(pages: int) -> int:
    return make_memory(pages)


def give(sock: socket.socket, first: int, pages: int) -> None:
    fd = memory(pages)
    send(sock, local.Memory(first, pages), [fd])
    os.close(fd)


def eventfds(count: int = 2) -> list[int]:
    return [os.eventfd(0, os.EFD_CLOEXEC) for _ in range(count)]


def make_port(sock: socket.socket, port: int) -> list[int]:
    fds = eventfds()
    send(sock, local.Event(port), fds)
    return fds


def close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def unsealed(pages: int, seals: int = 0) -> int:
    fd = os.memfd_create("xensock", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, pages * PAGE)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def test_scattered_pages_lie_in_order(raw: Raw) -> None:
    sock, back = raw
    fds = [memory(4), memory(4)]
    for first, fd in zip((10, 14), fds, strict=True):
        send(sock, local.Memory(first, 4), [fd])
        for page in range(4):
            os.pwrite(fd, bytes([first + page]), page * PAGE)
    assert back.receive()
    for refs in ([10, 11, 12, 13, 14], [17, 10, 16, 11], [12, 12], [13, 14, 15], [17]):
        view = back.map(refs)
        assert list(view[::PAGE]) == refs
        assert len(view) == len(refs) * PAGE
        view.release()
    close(fds)


@pytest.mark.parametrize("refs", [[], [0], [9], [14], [10, 14], [13, 14], [1 << 32], [10, 9, 10]])
def test_references_that_were_not_granted(raw: Raw, refs: list[int]) -> None:
    sock, back = raw
    give(sock, 10, 4)
    back.receive()
    with pytest.raises(GrantError) as raised:
        back.map(refs)
    assert raised.value.errno == errno.EINVAL


def test_mapped_memory_stays_when_all_else_goes(raw: Raw) -> None:
    sock, back = raw
    give(sock, 1, 2)
    back.receive()
    view = back.map([2, 1])
    send(sock, local.Unmap(1))
    back.receive()
    with pytest.raises(GrantError):
        back.map([1])
    part = view[PAGE:]
    view.release()
    back.close()
    part[0] = 7
    assert part[0] == 7
    part.release()


def test_limits_bound_what_is_mapped(raw: Raw) -> None:
    sock, back = raw
    give(sock, 1, 40)
    back.receive()
    views = [back.map([1, 3, 5])]
    for refs in ([1, 3], [1, 1]):
        with pytest.raises(GrantError, match="places") as raised:
            back.map(refs)
        assert raised.value.errno == errno.ENOMEM
    views.append(back.map(range(1, 41)))
    with pytest.raises(GrantError, match="pages mapped"):
        back.map(range(1, 40))
    for view in views:
        view.release()
    back.map(range(1, 41)).release()


def test_what_is_beyond_a_limit_is_refused_when_it_is_named(raw: Raw, holds) -> None:
    sock, back = raw
    give(sock, 1, 60)
    give(sock, 101, 5)  # 65 pages
    fds = make_port(sock, 1) + make_port(sock, 2)
    back.receive()
    before = holds()
    for port in range(3, 40):
        close(make_port(sock, port))
    for first in range(200, 220):
        give(sock, first, 1)
        back.receive()
    while select.select([back], [], [], 0)[0]:
        back.receive()
    assert holds()[0] == before[0] + 2  # regions 200 and 201
    for ref in (101, 202):
        with pytest.raises(GrantError):
            back.map([ref])
    with pytest.raises(GrantError) as raised:
        back.bind(3)
    assert raised.value.errno == errno.ENFILE
    send(sock, local.Unmap(1))
    give(sock, 301, 4)
    send(sock, local.Unevent(1))
    fds += make_port(sock, 3)
    back.receive()
    back.map([301]).release()
    back.bind(3).close()
    close(fds)


def test_one_frontend_leaves_half_to_the_others(raw: Raw, monkeypatch) -> None:
    sock, back = raw
    monkeypatch.setattr(budget, "DESCRIPTORS", Budget(lambda: 8))
    monkeypatch.setattr(budget, "MAPPINGS", Budget(lambda: 4))
    fds = make_port(sock, 1)
    give(sock, 1, 4)
    back.receive()
    assert budget.DESCRIPTORS.used == 3
    fds += make_port(sock, 2)
    back.receive()
    back.bind(1).close()
    with pytest.raises(GrantError, match="no room"):
        back.bind(2)
    view = back.map([1, 3])
    with pytest.raises(GrantError, match="places"):
        back.map([2])
    view.release()
    assert budget.MAPPINGS.used == 0
    back.close()
    assert budget.DESCRIPTORS.used == 0
    close(fds)


def test_a_channel_is_bound_once_at_a_time(raw: Raw) -> None:
    sock, back = raw
    fds = make_port(sock, 1)
    back.receive()
    bound = back.bind(1)
    with pytest.raises(GrantError) as raised:
        back.bind(1)
    assert raised.value.errno == errno.EBUSY
    bound.close()
    bound.close()
    again = back.bind(1)
    send(sock, local.Unevent(1))
    back.receive()
    os.eventfd_write(fds[0], 1)
    assert again.clear()  # it lives until it is closed
    again.close()
    assert not again.clear()
    assert (again.notify_fd, again.wait_fd) == (-1, -1)
    close(fds)


def test_eventfds_that_block_or_are_full_hold_nobody_up(raw: Raw) -> None:
    sock, back = raw
    fds = make_port(sock, 1)
    back.receive()
    bound = back.bind(1)
    for fd in fds:
        os.set_blocking(fd, True)
    assert not bound.clear()
    os.eventfd_write(fds[1], (1 << 64) - 2)
    bound.notify()
    assert os.eventfd_read(fds[1]) >= (1 << 64) - 2
    bound.close()
    close(fds)


def bad_messages() -> dict[str, tuple[local.Message | bytes, list[int]]]:
    good = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    readonly = memory(2)
    reopened = os.open(f"/proc/self/fd/{readonly}", os.O_RDONLY | os.O_CLOEXEC)
    os.close(readonly)
    return {
        "garbage": (b"\xff" * 40, []),
        "a length that is none": (local.encode(local.Unevent(1))[:-1], []),
        "a second hello": (local.Hello("again"), []),
        "a backend's message": (local.Welcome(), []),
        "memory without a descriptor": (local.Memory(1, 2), []),
        "memory with two": (local.Memory(1, 2), [memory(2), memory(2)]),
        "an event with one": (local.Event(1), eventfds(1)),
        "an event with many": (local.Event(1), eventfds(40)),
        "descriptors with nodes": (local.Write({"a": "b"}), eventfds(1)),
        "no eventfds": (local.Event(1), [memory(1), memory(1)]),
        "memory that can shrink": (local.Memory(1, 2), [unsealed(2)]),
        "memory that is not sealed for good": (
            local.Memory(1, 2),
            [unsealed(2, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)],
        ),
        "memory that cannot be written": (
            local.Memory(1, 2),
            [unsealed(2, good | fcntl.F_SEAL_WRITE)],
        ),
        "memory open for reading": (local.Memory(1, 2), [reopened]),
        "memory of another size": (local.Memory(1, 3), [memory(2)]),
        "memory of no size": (local.Memory(1, 1 << 20), [unsealed(0, good)]),
        "an eventfd as memory": (local.Memory(1, 2), eventfds(1)),
        "a file": (local.Memory(1, 1), [os.open(__file__, os.O_RDONLY | os.O_CLOEXEC)]),
        "references twice": (local.Memory(49, 4), [memory(4)]),
        "references twice, from below": (local.Memory(45, 6), [memory(6)]),
        "a port twice": (local.Event(50), eventfds()),
        "a key of no store": (local.Write({"a b": "c"}), []),
        "a value of no store": (local.Write({"a": "\x1b[31m"}), []),
        "too many nodes": (local.Write({"a": "b" * 100}), []),
        "too large": (bytes(local.LARGEST + 1), []),
    }


@pytest.mark.slow
def test_breaches_end_the_session_and_leave_nothing(raw: Raw, holds) -> None:
    sock, back = raw
    give(sock, 50, 2)
    fds = make_port(sock, 50)
    send(sock, local.Write({"state": "1"}))
    back.receive()
    bad = bad_messages()
    fds_now, maps = holds()
    for what, (message, theirs) in bad.items():
        send(sock, message, theirs)
        close(theirs)
        fds_now -= len(theirs)
        with pytest.raises(ProtocolError) as raised:
            back.receive()
        assert str(raised.value), what
        assert holds() == (fds_now, maps), what
    assert back.nodes == {"state": "1"}
    close(fds)


def test_nothing_comes_before_the_introduction() -> None:
    for first in (local.Write({"a": "b"}), local.Memory(1, 1), local.Hello("x", 0)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        back = LocalBackSession(theirs, 1, 2, Limits())
        back.write({"state": "2"})
        fd = [memory(1)] if isinstance(first, local.Memory) else []
        send(ours, first, fd)
        close(fd)
        with pytest.raises(ProtocolError):
            back.receive()
        back.close("go away")
        # It closed without reading everything, perhaps; what it said is there all the same.
        assert local.decode_back(ours.recv(1000)) == local.Goodbye("go away")
        ours.close()


def test_a_flood_is_taken_in_turns(raw: Raw) -> None:
    sock, back = raw
    sock.setblocking(False)
    for number in range(2 * TURN):
        send(sock, local.Write({"n": str(number)}))
    assert back.receive()
    assert back.nodes["n"] == str(TURN - 1)
    assert back.receive()
    assert back.nodes["n"] == str(2 * TURN - 1)


def test_a_frontend_that_does_not_read_is_given_up(raw: Raw) -> None:
    _, back = raw
    with pytest.raises(ProtocolError, match="read"):
        flood(back)


def flood(back: LocalBackSession) -> None:
    for number in range(10_000):
        back.write({"n": str(number), "padding": "x" * 1000})


def test_who_it_is(tmp_path: Path, meeting) -> None:
    pair = meeting(name="Gast\x1bé")
    assert (pair.back.uid, pair.back.pid) == (os.geteuid(), os.getpid())
    assert pair.back.guest == "Gast?é"


def test_a_user_who_is_not_admitted(tmp_path: Path) -> None:
    listener = listen(str(tmp_path / "b"), mode=0o666)
    listener._uids = {12345}  # nobody here can change its own uid
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(str(tmp_path / "b"))
        with pytest.raises(PermissionError, match=str(os.getpid())):
            listener.accept()
        answer = local.decode_back(sock.recv(1000))
        assert isinstance(answer, local.Goodbye)
        assert "not admitted" in answer.reason
    assert listener.accept() is None
    listener.close()


def test_the_file_of_a_listener(tmp_path: Path) -> None:
    path = tmp_path / (
        "x" * (106 - len(str(tmp_path)))
    )  # the temporary name must not be too long either
    listener = listen(str(path), mode=0o620)
    assert stat.S_IMODE(path.stat().st_mode) == 0o620
    assert listener.url == f"local:{path}"
    with pytest.raises(OSError, match="somebody") as raised:
        listen(str(path))
    assert raised.value.errno == errno.EADDRINUSE
    listener.close()
    listener.close()
    assert not path.exists()
    assert listener.fileno() == -1

    dead = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    dead.bind(str(path))
    dead.close()
    first = listen(str(path))  # in its place
    path.unlink()
    second = listen(str(path))
    first.close()
    assert path.exists()  # the second one's
    second.close()
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        listen(str(path))
    assert path.read_text() == "precious"
    with pytest.raises(FileNotFoundError):
        listen(str(tmp_path / "none" / "b"))
    assert os.listdir(tmp_path) == [path.name]


FRONTEND = """
import os, sys
from xensock.transport.local_front import connect
def step(number):
    print(number, flush=True)
    if number == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
step(0)
session = connect(sys.argv[1]); step(1)
run = session.allocate(8); step(2)
event = session.event(); step(3)
session.write({"state": "1"}); step(4)
event.notify(); step(5)
more = session.allocate(5000); step(6)
event.close(); step(7)
session.write({"state": "5"}); step(8)
"""


@pytest.mark.parametrize("step", range(9))
def test_a_frontend_that_dies_leaves_nothing(tmp_path: Path, step: int, holds) -> None:
    listener = listen(str(tmp_path / "b"))
    before = holds()
    argv = [sys.executable, "-c", FRONTEND, str(tmp_path / "b"), str(step)]
    program = subprocess.Popen(argv, stdout=subprocess.PIPE)
    sessions: list[LocalBackSession] = []
    views: list[memoryview] = []
    bound = []
    ended = step == 0
    while not ended:
        readable = select.select([*sessions, listener], [], [], 20)[0]
        assert readable
        if listener in readable and (session := listener.accept()):
            sessions.append(session)
        for session in set(readable) & set(sessions):
            ended = not session.receive()
            for refs in ([1, 2], [8], [300]):
                try:
                    views.append(session.map(refs))
                except GrantError:
                    continue
                views[-1][0] = 1
            with contextlib.suppress(GrantError):
                bound.append(session.bind(1))
                bound[-1].notify()
    output, _ = program.communicate(timeout=20)
    assert output.decode().split()[-1] == str(step)
    for session in sessions:
        session.close("you are dead")
    for event in bound:
        event.close()
    for view in views:
        view.release()
    views.clear()
    del program
    assert holds() == before
    listener.close()


PARENT = """
import os, sys
from xensock.transport.local_front import connect
session = connect(sys.argv[1])
session.allocate(1)
if os.fork() == 0:
    print("child", flush=True)
    os.read(0, 1)
os._exit(0)
"""


def test_the_end_of_a_frontend_is_seen_though_its_child_lives(tmp_path: Path) -> None:
    listener = listen(str(tmp_path / "b"))
    argv = [sys.executable, "-c", PARENT, str(tmp_path / "b")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert select.select([listener], [], [], 20)[0]
        session = listener.accept()
        assert session
        while session.receive():
            assert select.select([session], [], [], 20)[0]
        assert program.stdout
        assert program.stdout.readline() == b"child\n"
        assert not select.select([program.stdout], [], [], 0)[0]  # it lives
        program.communicate(b"x", timeout=20)
    session.close()
    listener.close()


def test_a_frontend_is_told_why(tmp_path: Path, meeting) -> None:
    pair = meeting()
    pair.back.close("x" * 10_000)
    with pytest.raises(TransportError, match="xxxx"):
        pair.front.wait_for(lambda nodes: False, 5)
    assert pair.back.fileno() == -1
    pair.back.write({"state": "6"})
    with pytest.raises(ConnectionRefusedError):
        connect_after_close(tmp_path)


def connect_after_close(tmp_path: Path) -> None:
    listener = listen(str(tmp_path / "closed"))
    os.link(tmp_path / "closed", tmp_path / "kept")
    listener.close()
    connect(str(tmp_path / "kept"))
