"""What the kernel's program tells of a socket's end, beside what sock_diag's multicast tells of the same one."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from xensock import _core
from xensock.cgroups import own_cgroup
from xensock.supervisor import ebpf, end_program, tcpinfo
from xensock.supervisor.diag import cookie
from xensock.supervisor.end_sources import open_diag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

RING = 1 << 16
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
        self.link = undo.enter_context(open_diag())
        self.link.bind((0, sum(1 << group - 1 for group in tcpinfo.DESTROYED.values())))
        self.link.settimeout(30)
        kept(ebpf.link(program, target, end_program.CGROUP_SOCK_OPS))
        self.messages: dict[int, bytes] = {}
        self.seen: dict[int, tcpinfo.Seen] = {}

    def by_program(self, number: int) -> bytes:
        """It is there as soon as the socket is closed."""
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


def orderly(pair: Pair) -> None:
    for sock in pair:
        sock.shutdown(socket.SHUT_WR)
    for sock in pair:
        while sock.recv(4096):
            pass
        sock.close()


def far_end_first(pair: Pair) -> None:
    orderly(pair[::-1])


def with_bytes(pair: Pair) -> None:
    pair[0].sendall(b"x" * 100_000)
    assert len(pair[1].recv(100_000, socket.MSG_WAITALL)) == 100_000
    pair[1].sendall(b"y" * 70_000)
    orderly(pair)


def reset_by_the_far_end(pair: Pair) -> None:
    pair[0].sendall(b"x" * 10)
    pair[1].recv(10, socket.MSG_WAITALL)
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair[1].close()
    with contextlib.suppress(ConnectionResetError):
        pair[0].recv(1)
    pair[0].close()


def closed_with_bytes_unread(pair: Pair) -> None:
    pair[1].sendall(b"z" * 500)
    pair[0].recv(1)
    pair[0].close()
    with contextlib.suppress(ConnectionResetError):
        pair[1].recv(1)
    pair[1].close()


def closed_in_the_rain(pair: Pair) -> None:
    """Its bytes and its FIN wait for a far end that takes no more, and resets."""
    pair[0].setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            pair[0].send(b"x" * 65536)
    pair[0].close()
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair[1].close()


WAYS = [
    orderly,
    far_end_first,
    with_bytes,
    reset_by_the_far_end,
    closed_with_bytes_unread,
    closed_in_the_rain,
]


@contextlib.contextmanager
def joined(family: int, host: str) -> Iterator[Pair]:
    at = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=at) as server, socket.socket(family) as near:
        near.connect(("::ffff:" * (at != family) + host, server.getsockname()[1]))
        far, _ = server.accept()
        with far:
            yield near, far


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"), (socket.AF_INET6, "127.0.0.1")],
    ids=["IPv4", "IPv6", "mapped"],
)
def test_it_says_what_the_multicast_says(
    told: Told, family: int, host: str, way: Callable[[Pair], None]
) -> None:
    with joined(family, host) as pair:
        numbers = [cookie(sock) for sock in pair]
        before = time.monotonic_ns()
        way(pair)
        after = time.monotonic_ns()
    for accepted, number in enumerate(numbers):
        message = told.by_program(number)
        ours = tcpinfo.parse(message)
        assert before < tcpinfo.ended_ns(message) < after
        sent, received, error = tcpinfo.counted(ours.info, bool(accepted))
        assert ours.state == tcpinfo.STATES.index("closed")
        if way is closed_in_the_rain and not accepted:
            assert error == 104
        theirs = told.by_multicast(number)
        assert (ours.family, ours.local) == (theirs.family, theirs.local)
        if not theirs.remote[1]:  # closed to reset: the kernel has forgotten before it destroys
            other = tcpinfo.parse(told.by_program(numbers[0]))
            assert ours.end(ours.remote) == other.end(other.local)
            assert (sent, received, error) == (0, 10 * (way is reset_by_the_far_end), 104)
            continue
        assert ours.remote == theirs.remote
        wanted = tcpinfo.counted(theirs.info, bool(accepted))
        if way is closed_in_the_rain and not accepted:
            assert wanted[0] is not None
            assert sent in (wanted[0], wanted[0] - 1)  # its FIN was not sent
            assert (received, error) == wanted[1:]
        else:
            assert (sent, received, error) == wanted
    assert told.lost[:8] == bytes(8)
