"""What the kernel's program tells of a socket's end, beside what sock_diag's multicast tells of the same one."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest
from endkit import joined

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.cgroups import own_cgroup
from xensock.supervisor import ebpf, end_program, tcpinfo
from xensock.supervisor.diag import cookie, open_link
from xensock.supervisor.end_sources import netns_cookie

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RING = 1 << 20
Pair = tuple[socket.socket, socket.socket]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="programs in the kernel are root's to load"
)


class Told:
    """Both sources; the program is at this process's cgroup while it lasts."""

    def __init__(self, undo: contextlib.ExitStack) -> None:
        def kept(fd: int) -> int:
            undo.callback(os.close, fd)
            return fd

        ring, lost = kept(ebpf.ring(RING)), kept(ebpf.array(8))
        program = kept(end_program.load(ring, lost))
        target = kept(os.open(own_cgroup(), os.O_RDONLY))
        self.ring = _core.endring_open(ring, RING)
        self.lost = undo.enter_context(ebpf.mapped(lost))
        self.link = undo.enter_context(open_link())
        self.link.bind((0, sum(1 << group - 1 for group in tcpinfo.DESTROYED.values())))
        self.link.settimeout(30)
        kept(ebpf.link(program, target, end_program.CGROUP_SOCK_OPS))
        self.messages: dict[int, bytes] = {}
        self.seen: dict[int, tcpinfo.Seen] = {}

    def by_program(self, number: int) -> bytes:
        """It is there as soon as the socket is closed, behind what others are writing."""
        deadline = time.monotonic() + 10
        while number not in self.messages and time.monotonic() < deadline:
            heard = tcpinfo.split(_core.endring_read(self.ring))
            self.messages.update((tcpinfo.cookie_of(each), each) for each in heard)
        return self.messages[number]

    def by_multicast(self, number: int) -> tcpinfo.Seen:
        while number not in self.seen:
            seen = tcpinfo.parse(self.link.recv(1 << 16))
            self.seen[seen.cookie] = seen
        return self.seen[number]


@pytest.fixture
def told() -> Iterator[Told]:
    with contextlib.ExitStack() as undo:
        yield Told(undo)


def at_once(pair: Pair) -> None:
    for sock in pair:
        sock.shutdown(socket.SHUT_WR)
    for sock in pair:
        assert sock.recv(1) == b""
        sock.close()


def near_first(pair: Pair) -> None:
    pair[0].sendall(b"x" * 10)
    pair[1].recv(10, socket.MSG_WAITALL)
    pair[0].close()
    assert pair[1].recv(1) == b""
    pair[1].close()


def far_first(pair: Pair) -> None:
    near_first(pair[::-1])


def half_closed(pair: Pair) -> None:
    pair[0].sendall(b"x" * 100_000)
    assert len(pair[1].recv(100_000, socket.MSG_WAITALL)) == 100_000
    pair[0].shutdown(socket.SHUT_WR)
    pair[1].sendall(b"y" * 70_000)
    pair[1].close()
    assert len(pair[0].recv(70_000, socket.MSG_WAITALL)) == 70_000
    assert pair[0].recv(1) == b""
    pair[0].close()


def half_closed_and_left(pair: Pair) -> None:
    """It does not wait for the other end's FIN."""
    pair[0].shutdown(socket.SHUT_WR)
    pair[1].sendall(b"y" * 70)
    pair[0].recv(70, socket.MSG_WAITALL)
    pair[0].close()
    assert pair[1].recv(1) == b""
    pair[1].close()


def hard(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def reset(pair: Pair) -> None:
    pair[0].sendall(b"x" * 10)
    pair[1].recv(10, socket.MSG_WAITALL)
    hard(pair[1])
    with pytest.raises(ConnectionResetError):
        pair[0].recv(1)
    pair[0].close()


def reset_after_its_fin(pair: Pair) -> None:
    pair[0].sendall(b"x" * 10)
    pair[1].recv(10, socket.MSG_WAITALL)
    pair[1].sendall(b"y" * 20)
    pair[1].shutdown(socket.SHUT_WR)
    assert len(pair[0].recv(30, socket.MSG_WAITALL)) == 20
    hard(pair[1])
    pair[0].close()


def bytes_unread(pair: Pair) -> None:
    pair[1].sendall(b"z" * 500)
    pair[0].recv(1)
    pair[0].close()
    with pytest.raises(ConnectionResetError):
        pair[1].recv(1)
    pair[1].close()


def refused(pair: Pair) -> None:
    """What was sent to an end that is closed already."""
    pair[1].close()
    assert pair[0].recv(1) == b""
    pair[0].sendall(b"x" * 7)
    pair[0].close()


# What each does, and then (sent, received, error) of the near end and of the far one.
RESET = errno.ECONNRESET
WAYS = {
    at_once: ((0, 0, 0), (0, 0, 0)),
    near_first: ((10, 0, 0), (0, 10, 0)),
    far_first: ((0, 10, 0), (10, 0, 0)),
    half_closed: ((100_000, 70_000, 0), (70_000, 100_000, 0)),
    half_closed_and_left: ((0, 70, 0), (70, 0, 0)),
    reset: ((10, 0, RESET), (0, 10, RESET)),
    reset_after_its_fin: ((10, 20, RESET), (20, 10, RESET)),
    bytes_unread: ((0, 500, RESET), (500, 0, RESET)),
    refused: ((7, 0, RESET), (0, 0, 0)),
}


families = pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "127.0.0.1")],
    ids=["IPv4", "IPv6", "mapped"],
)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@families
def test_what_it_says(told: Told, family: int, host: str, way: Callable[[Pair], None]) -> None:
    with joined(host, family) as pair:
        numbers = [cookie(sock) for sock in pair]
        names = [Endpoint.from_python(sock.getsockname()) for sock in pair]
        before = time.monotonic_ns()
        way(pair)
        after = time.monotonic_ns()
    for accepted, number in enumerate(numbers):
        message = told.by_program(number)
        seen = tcpinfo.parse(message)
        assert before < tcpinfo.ended_ns(message) < after
        assert tcpinfo.netns_of(message) == netns_cookie()
        assert seen.state == tcpinfo.STATES.index("closed")
        assert seen.end(seen.local) == names[accepted].unmapped()
        assert seen.end(seen.remote) == names[1 - accepted].unmapped()
        assert tcpinfo.counted(seen.info, bool(accepted)) == WAYS[way][accepted]
        theirs = told.by_multicast(number)
        assert (seen.family, seen.local) == (theirs.family, theirs.local)
        # Closed to reset, the kernel has forgotten the other end before it destroys.
        assert seen.remote == theirs.remote or not theirs.remote[1]
        assert tcpinfo.counted(theirs.info, bool(accepted))[2] == WAYS[way][accepted][2]
    assert told.lost[:8] == bytes(8)


@families
def test_closed_while_the_other_end_takes_nothing(told: Told, family: int, host: str) -> None:
    """Bytes and FIN wait, and the other end resets: of those bytes, all that went out, or one less."""
    with joined(host, family) as (near, far):
        number = cookie(near)
        near.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                near.send(b"x" * 65536)
        near.close()
        hard(far)
    sent, received, error = tcpinfo.counted(tcpinfo.parse(told.by_program(number)).info, False)
    wanted, _, _ = tcpinfo.counted(told.by_multicast(number).info, False)
    assert wanted is not None
    assert sent in (wanted, wanted - 1)
    assert (received, error) == (0, RESET)


@families
def test_never_connected(told: Told, family: int, host: str) -> None:
    with socket.socket(family) as sock:
        number = cookie(sock)
        with pytest.raises(ConnectionRefusedError):
            sock.connect(("::ffff:" * (family == socket.AF_INET6 and ":" not in host) + host, 1))
    counted = tcpinfo.counted(tcpinfo.parse(told.by_program(number)).info, False)
    assert counted == (0, 0, errno.ENOTCONN)
