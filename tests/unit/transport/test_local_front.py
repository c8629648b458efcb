"""A frontend's session: what it grants arrives, what ends it is said, and nothing stays behind."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from xensock.transport.base import PAGE, GrantError, Limits, TransportError
from xensock.transport.local_back import listen
from xensock.transport.local_front import LocalSession, connect
from xensock.wire import local

if TYPE_CHECKING:
    from pathlib import Path

Meeting = Callable[..., object]


def test_both_sides_see_the_same_pages(meeting) -> None:
    pair = meeting()
    run = pair.front.allocate(3)
    assert len(run.refs) == 3
    assert 0 not in run.refs
    run.memory[PAGE : PAGE + 5] = b"hello"
    pair.settle()
    view = pair.back.map([run.refs[1], run.refs[0]])
    assert bytes(view[:5]) == b"hello"
    view[PAGE] = 9
    assert run.memory[0] == 9
    view.release()


def test_events_go_both_ways_and_do_not_count(meeting) -> None:
    pair = meeting()
    front = pair.front.event()
    pair.settle()
    back = pair.back.bind(front.port)
    assert not back.clear()
    front.notify()
    front.notify()
    assert select.select([back.wait_fd], [], [], 5)[0]
    assert back.clear()
    assert not back.clear()
    back.notify()
    assert select.select([front.wait_fd], [], [], 5)[0]
    assert front.clear()
    assert not front.clear()
    back.close()
    front.close()


def test_nodes_go_both_ways(meeting) -> None:
    pair = meeting()
    changes: list[dict[str, str]] = []
    pair.front.on_change(changes.append)
    pair.front.write({"version": "1", "port": "7"})
    pair.settle()
    assert pair.back.nodes == {"version": "1", "port": "7"}
    pair.back.write({"state": "2"})
    pair.back.write({"state": "4", "max-page-order": "9"})
    assert pair.front.wait_for(lambda nodes: nodes.get("state") == "4", 5)["max-page-order"] == "9"
    assert changes[-1]["state"] == "4"
    with pytest.raises(TimeoutError):
        pair.front.wait_for(lambda nodes: "none" in nodes, 0.01)


def test_pages_are_used_anew_when_both_sides_let_go(meeting) -> None:
    pair = meeting()
    first = pair.front.allocate(2)
    first.memory[0] = 1
    refs = first.refs
    kept = first.memory[:1]
    first.free()
    second = pair.front.allocate(2)
    assert set(second.refs).isdisjoint(refs)  # somebody still looks at the first ones
    kept.release()
    third = pair.front.allocate(2)
    assert third.refs == refs
    assert bytes(third.memory) == bytes(2 * PAGE)
    with pytest.raises(ValueError, match="freed"):
        _ = first.memory


def test_pages_that_were_not_freed_are_not_given_to_another(meeting) -> None:
    pair = meeting()
    refs = pair.front.allocate(2).refs
    assert set(pair.front.allocate(2).refs).isdisjoint(refs)


def test_regions_that_are_empty_are_withdrawn(meeting) -> None:
    pair = meeting()
    runs = [pair.front.allocate(300) for _ in range(4)]
    pair.settle()
    pair.back.map([runs[3].refs[0]]).release()
    for run in runs:
        run.free()
    pair.front.allocate(1)
    pair.settle()
    with pytest.raises(GrantError, match="not granted"):
        pair.back.map([runs[3].refs[0]])


def test_ports_are_used_anew(meeting) -> None:
    pair = meeting()
    one, two = pair.front.event(), pair.front.event()
    pair.settle()
    bound = pair.back.bind(one.port)
    port = one.port
    one.close()
    one.close()
    again = pair.front.event()
    assert again.port == port != two.port
    pair.settle()
    other = pair.back.bind(port)
    again.notify()
    assert other.clear()
    assert not bound.clear()
    for event in (bound, other, two, again):
        event.close()


def test_the_limits_are_told_as_errors(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session = LocalSession(ours, Limits(pages=10, ports=1))
    try:
        session.allocate(8)
        with pytest.raises(OSError, match="pages") as raised:
            session.allocate(8)
        assert raised.value.errno == errno.ENOSPC
        session.event().close()
        event = session.event()
        with pytest.raises(OSError, match="channels") as raised:
            session.event()
        assert raised.value.errno == errno.ENOSPC
        event.close()
        with pytest.raises(OSError, match="no pages"):
            session.allocate(0)
    finally:
        session.close()
        theirs.close()


def test_a_session_that_is_closed_says_so(meeting) -> None:
    pair = meeting()
    pair.front.close()
    pair.front.close()
    for call in (pair.front.event, lambda: pair.front.allocate(1), lambda: pair.front.write({})):
        with pytest.raises(TransportError) as raised:
            call()
        assert raised.value.errno == errno.ENOTCONN
    assert not pair.settle()
    assert pair.front.fileno() == -1


def test_waiting_ends_with_the_backend_and_tells_its_reason(meeting) -> None:
    pair = meeting()
    told = threading.Event()
    pair.front.on_change(lambda nodes: told.set() if pair.front.error else None)
    closer = threading.Timer(0.02, lambda: pair.back.close("because"))
    closer.start()
    with pytest.raises(TransportError, match="because") as raised:
        pair.front.wait_for(lambda nodes: False, 10)
    assert raised.value.errno == errno.ECONNRESET
    assert told.wait(5)
    closer.join()
    late: list[object] = []
    pair.front.on_change(late.append)
    assert late


def test_a_backend_that_talks_nonsense_ends_the_session() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session = LocalSession(ours)
    try:
        theirs.send(local.encode(local.Hello("I am a frontend")))
        with pytest.raises(TransportError) as raised:
            session.wait_for(lambda nodes: False, 10)
        assert raised.value.errno == errno.EPROTO
    finally:
        session.close()
        theirs.close()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        connect(str(tmp_path / "none"))
    assert raised.value.filename == str(tmp_path / "none")
    with listening(tmp_path / "busy", backlog=0) as busy:
        with pytest.raises(TimeoutError, match="answer"):
            connect(str(tmp_path / "busy"), timeout=0.05)
        with pytest.raises(TimeoutError):
            connect(str(tmp_path / "busy"), timeout=0.05)
        busy.close()
    with pytest.raises(ConnectionRefusedError):
        connect(str(tmp_path / "busy"))


def listening(path: Path, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.bind(str(path))
    sock.listen(backlog)
    return sock


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (local.Goodbye("not you"), errno.ECONNREFUSED),
        (local.Welcome(2), errno.EPROTO),
        (local.Nodes({"state": "2"}), errno.EPROTO),
        (None, errno.ECONNRESET),
    ],
)
def test_not_welcome(tmp_path: Path, answer: local.BackMessage | None, error: int) -> None:
    with listening(tmp_path / "b", backlog=1) as listener:

        def serve() -> None:
            conn, _ = listener.accept()
            with conn:
                if answer is not None:
                    conn.send(local.encode(answer))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(TransportError) as raised:
            connect(str(tmp_path / "b"))
        thread.join()
        assert raised.value.errno == error


def test_a_name_that_cannot_be_told(tmp_path: Path) -> None:
    listener = listen(str(tmp_path / "b"))
    with pytest.raises(ValueError, match="64"):
        connect(str(tmp_path / "b"), name="x" * 65)
    listener.close()


def test_a_child_of_fork_has_no_session(meeting) -> None:
    pair = meeting()
    run = pair.front.allocate(1)
    end, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for call in (pair.front.event, lambda: pair.front.allocate(1), pair.front.close):
                try:
                    call()
                except RuntimeError as error:
                    os.write(write, str(error).encode())
            run.memory[0] = 5
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(end) as stream:
        assert stream.read().count("parent") == 3
    os.waitpid(pid, 0)
    assert run.memory[0] == 5
    pair.front.event().close()  # ours goes on
    assert pair.settle()


def test_nothing_stays(meeting, holds) -> None:
    meeting().close()
    before = holds()
    pair = meeting()
    run, event = pair.front.allocate(40), pair.front.event()
    pair.settle()
    view, bound = pair.back.map(run.refs), pair.back.bind(event.port)
    assert holds() > before
    pair.close()
    bound.close()
    view.release()
    run.free()
    event.close()
    del run, view
    # The listener of this pair is closed with the fixture.
    now = holds()
    assert (now[0] - 1, now[1]) == before
