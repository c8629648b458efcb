"""What the kernel tells of UDP sockets that end, and what is left of them where it could not tell all."""

from __future__ import annotations

import select
import socket
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from world.processes import eventually
from xensock.supervisor import udp_diag
from xensock.supervisor.diag import cookie

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xensock.supervisor.guest import Guest

HERE = cast("Guest", SimpleNamespace(socket=socket.socket))
PATIENCE_S = 10
SO_MEMINFO = 55  # Python does not name it
DATAGRAMS = (socket.AF_INET, socket.SOCK_DGRAM)


@pytest.fixture
def watched() -> Iterator[socket.socket]:
    with udp_diag.watch(HERE) as diag:
        yield diag


def told(watched: socket.socket, enough: Callable[[set[int], bool], bool]) -> set[int]:
    """The ends that are told, a moment after they happen, until it is enough."""
    ended, lost = set[int](), False
    while not enough(ended, lost):
        assert select.select([watched], [], [], PATIENCE_S)[0], ended
        more, less = udp_diag.read(watched)
        ended, lost = ended | more, lost or less
    return ended


def _dropped(sock: socket.socket) -> int:
    """SK_MEMINFO_DROPS of SO_MEMINFO (socket(7))."""
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36)[32:], sys.byteorder)


def test_the_end_of_a_socket_is_told(watched: socket.socket) -> None:
    with socket.socket(*DATAGRAMS) as sock, socket.socket(*DATAGRAMS) as other:
        sock.bind(("127.0.0.1", 0))
        number, still = cookie(sock), cookie(other)
        assert number not in udp_diag.read(watched)[0]
        sock.close()
        assert still not in told(watched, lambda ended, _: number in ended)


def test_so_many_ends_that_some_are_lost(watched: socket.socket) -> None:
    watched.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # as little as there is
    ended = set()
    with socket.socket(*DATAGRAMS) as sock:
        sock.bind(("127.0.0.1", 0))
        for _ in range(200):
            with socket.socket(*DATAGRAMS) as other:
                other.bind(("127.0.0.1", 0))
                ended.add(cookie(other))
        # The kernel tells them a moment later; a reader who keeps up with it would lose none.
        eventually(lambda: _dropped(watched), PATIENCE_S, "an end for which there was no room")
        assert ended - told(watched, lambda _, lost: lost) != set()
        there = udp_diag.there(HERE)
        assert cookie(sock) in there
        assert there & ended == set()
