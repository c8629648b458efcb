"""The mover's rings from Python: tokens, notices, whose memory and descriptors are whose."""

import errno
import gc
import mmap
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, TypeVar

import pytest

from xensock import _core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

ORDER = 2


class Peer:
    """The test's end of a ring whose other end is the mover's."""

    def __init__(self, role: str, events: bool = True, order: int = ORDER) -> None:
        self.page = mmap.mmap(-1, 4096)
        self.data = mmap.mmap(-1, 4096 << order)
        self.events = events
        self.notify = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.wait = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        _core.DataRing(self.page, self.data, "front", events, True).close()
        self.ring = _core.DataRing(self.page, self.data, role, events)

    @property
    def end(self) -> "_core.RingEnd":
        return (self.page, self.data, self.wait, self.notify, self.events)

    def write(self, data: bytes) -> None:
        done, notify = self.ring.write(data)
        assert done == len(data)
        if notify:
            os.eventfd_write(self.notify, 1)

    def read(self) -> bytes:
        """What comes next, b"" at an error or the end."""
        while not (got := self.ring.read(1 << 20))[0] and not self.ring.read_error:
            if not self.ring.arm_read():
                assert select.select([self.wait], [], [], 5)[0]
                os.eventfd_read(self.wait)
        if got[1]:
            os.eventfd_write(self.notify, 1)
        return got[0]

    def fail(self, in_error: int, out_error: int = 0) -> None:
        if in_error:
            self.ring.in_error = in_error
        if out_error:
            self.ring.out_error = out_error
        os.eventfd_write(self.notify, 1)

    def close(self) -> None:
        """mmap.close() raises BufferError while the mover holds the memory."""
        self.ring.close()
        self.page.close()
        self.data.close()
        os.close(self.notify)
        os.close(self.wait)


@pytest.fixture
def mover() -> "Iterator[_core.Mover]":
    mover = _core.mover_open(1)
    yield mover
    _core.mover_close(mover, 0)


def until(mover: "_core.Mover", fetch: "Callable[[_core.Mover], list[T]]") -> T:
    deadline = time.monotonic() + 5
    while not (got := fetch(mover)):
        assert time.monotonic() < deadline
        select.select([_core.mover_fd(mover)], [], [], 0.05)
    assert len(got) == 1
    return got[0]


def add(
    mover: "_core.Mover", sock: socket.socket, peer: Peer, role: str, report: bool = True
) -> int:
    page, data, notify, event, events = peer.end
    return _core.mover_add_ring(
        mover, sock.detach(), page, data, role, notify, event, events, report
    )


def test_a_backends_connection(mover: "_core.Mover") -> None:
    peer = Peer("front")
    near, far = socket.socketpair()
    with near:
        token = add(mover, far, peer, "back")
        peer.write(b"question")
        assert near.recv(100) == b"question"
        near.sendall(b"answer")
        assert peer.read() == b"answer"
        assert _core.mover_bytes(mover, token) == (8, 6)
        near.shutdown(socket.SHUT_WR)
        assert peer.read() == b""
        assert peer.ring.read_error == -errno.ENOTCONN
        peer.write(b"last words")
        _core.mover_shutdown(mover, token, socket.SHUT_WR, 0)
        assert near.recv(100) == b"last words"
        assert near.recv(100) == b""
        with pytest.raises(BufferError):
            peer.page.close()
        _core.mover_release(mover, token, False, 0)
        peer.close()
        assert until(mover, _core.mover_ended) == (token, 18, 6, 0, -1)
    _core.mover_release(mover, token, False, 0)
    with pytest.raises(ProcessLookupError):
        _core.mover_shutdown(mover, token, socket.SHUT_WR, 0)


def test_a_frontends_connection_ends_by_itself(mover: "_core.Mover") -> None:
    peer = Peer("back", events=False)
    near, far = socket.socketpair()
    with near:
        token = add(mover, far, peer, "front")
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert peer.read() == b"question"
        assert until(mover, _core.mover_notices) == (token, "eof", 0, 0)
        peer.write(b"answer")
        peer.fail(-errno.ENOTCONN)
        assert near.recv(100) == b"answer"
        assert near.recv(100) == b""
        assert until(mover, _core.mover_ended) == (token, 6, 8, 0, -1)
        peer.close()


def test_a_reset_is_noticed_and_ends_it(mover: "_core.Mover") -> None:
    peer = Peer("back")
    near, far = socket.socketpair()
    with near:
        token = add(mover, far, peer, "front")
        peer.fail(-errno.ECONNRESET, -errno.ECONNRESET)
        assert until(mover, _core.mover_notices) == (token, "reset", errno.ECONNRESET, 0)
        assert until(mover, _core.mover_ended) == (token, 0, 0, errno.ECONNRESET, 0)
        assert near.recv(1) == b""
        peer.close()


def test_guests_joined_in_memory(mover: "_core.Mover") -> None:
    a, b = Peer("front"), Peer("front", events=False)
    token = _core.mover_join(mover, a.end, None, True)
    a.write(b"hello")
    _core.mover_join_other(mover, token, b.end)
    with pytest.raises(OSError, match=os.strerror(errno.EISCONN)):
        _core.mover_join_other(mover, token, b.end)
    assert b.read() == b"hello"
    b.write(b"good bye")
    _core.mover_release(mover, token, False, 1)
    b.close()
    assert a.read() == b"good bye"
    assert a.read() == b""
    assert a.ring.read_error == -errno.ENOTCONN
    _core.mover_release(mover, token, False, 0)
    a.close()
    assert until(mover, _core.mover_ended) == (token, 5, 8, 0, -1)


def test_memory_is_let_go_though_nobody_wants_the_report(mover: "_core.Mover") -> None:
    for _ in range(3):
        peer = Peer("back")
        near, far = socket.socketpair()
        add(mover, far, peer, "front", report=False)
        near.close()
        deadline = time.monotonic() + 5
        while _core.mover_live(mover):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert _core.mover_ended(mover) == []
        peer.close()


def test_refusals_keep_nothing(mover: "_core.Mover") -> None:
    gc.collect()
    before = set(os.listdir("/proc/self/fd"))
    peer = Peer("front")
    for role, data, error in (
        ("sideways", peer.data, ValueError),
        ("back", mmap.mmap(-1, 4096), OSError),
        ("back", b"read-only", BufferError),
    ):
        near, far = socket.socketpair()
        with near, pytest.raises(error):
            _core.mover_add_ring(
                mover, far.detach(), peer.page, data, role, peer.wait, peer.notify, True, True
            )
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        _core.mover_join(mover, peer.end, (peer.page, peer.data, -1, -1, True), True)
    with pytest.raises(TypeError):
        _core.mover_join(mover, peer.end, 1, True)  # type: ignore[arg-type]
    peer.close()
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before


def test_closing_the_mover_lets_everything_go() -> None:
    mover = _core.mover_open(1)
    peer, joined = Peer("front"), Peer("front")
    near, far = socket.socketpair()
    with near:
        add(mover, far, peer, "back")
        _core.mover_join(mover, joined.end, None, True)
        _core.mover_close(mover, 0)
        assert near.recv(1) == b""
    assert joined.read() == b""
    assert joined.ring.read_error == -errno.ECONNRESET
    peer.close()
    joined.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def go_on(
    mover: "_core.Mover", sock: socket.socket, peer: Peer, start: tuple[int, int, bool, int, int]
) -> int:
    page, data, notify, event, events = peer.end
    return _core.mover_add_ring(
        mover, sock.detach(), page, data, "back", notify, event, events, True, False, start
    )


def test_going_on_where_another_process_stopped(mover: "_core.Mover") -> None:
    """It had moved bytes both ways, and was killed before the ring said so."""
    peer = Peer("front")
    near, far = tcp_pair()
    with near:
        peer.write(b"questions")
        far.send(b"quest")
        data = peer.end[1]
        data[:4] = b"answ"  # `in` is the first half
        near.sendall(b"ers")
        token = go_on(mover, far, peer, (5, 4, False, -1, 0))
        assert near.recv(5) == b"quest"
        assert near.recv(100) == b"ions"
        got = peer.read()
        assert (got if got == b"answers" else got + peer.read()) == b"answers"
        _core.mover_release(mover, token, False, 0)
        assert near.recv(1) == b""
    peer.close()


def test_going_on_to_an_end_that_was_announced(mover: "_core.Mover") -> None:
    peer = Peer("front")
    near, far = tcp_pair()
    with near:
        peer.write(b"questions")
        far.send(b"quest")
        token = go_on(mover, far, peer, (5, 0, False, 9, 0))
        assert b"".join(iter(lambda: near.recv(100), b"")) == b"questions"
        near.sendall(b"answer")
        assert peer.read() == b"answer"
        _core.mover_release(mover, token, False, 0)
    peer.close()


@pytest.mark.parametrize("stop", [0, 2, 5, 8, (1 << 31) + 4, (1 << 32) - 1, 8 + (2048 << ORDER)])
def test_going_on_to_an_end_that_cannot_be(mover: "_core.Mover", stop: int) -> None:
    """Where it was noted is what the guest had written: the ring ends where it ends now, and nothing comes after it."""
    peer = Peer("front")
    near, far = tcp_pair()
    near.settimeout(5)
    with near:
        peer.write(b"12345678")
        token = go_on(mover, far, peer, (3, 0, False, stop, 0))
        expected = b"45678"[: stop - 3] if 3 <= stop <= 8 else b"45678"
        assert near.recv(len(expected)) == expected
        peer.write(b"more")
        assert near.recv(100) == b""
        _core.mover_release(mover, token, False, 0)
    peer.close()


def test_going_on_with_one_that_has_died(mover: "_core.Mover") -> None:
    """The socket tells nobody any more why."""
    peer = Peer("front")
    near, far = tcp_pair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    near.close()
    deadline = time.monotonic() + 5
    while far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != errno.ECONNRESET:
        assert time.monotonic() < deadline
    token = go_on(mover, far, peer, (0, 0, False, -1, errno.ECONNRESET))
    assert peer.read() == b""
    assert peer.ring.read_error == -errno.ECONNRESET
    _core.mover_release(mover, token, False, 0)
    peer.close()


def test_what_is_left_can_be_delivered_by_another_process(mover: "_core.Mover") -> None:
    peer = Peer("front", order=9)
    near, far = tcp_pair()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    number = far.fileno()
    with near:
        token = add(mover, far, peer, "back")
        data = bytes(range(256)) * 4096
        peer.write(data)
        left = _core.mover_release(mover, token, False, 0, True)
        assert left is not None
        memory, fd, length, index = left
        assert (fd, (index + length) & 0xFFFFFFFF) == (number, len(data))
        assert os.pread(memory, length, 0) == data[index:]
        os.close(memory)
        assert b"".join(iter(lambda: near.recv(1 << 20), b"")) == data
    assert _core.mover_release(mover, token, False, 0, True) is None
    peer.close()
