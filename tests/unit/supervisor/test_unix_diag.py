"""What the kernel tells of unix sockets: where they are bound, with whom they are connected."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from xensock.supervisor.diag import NETLINK_SOCK_DIAG
from xensock.supervisor.unix_diag import UnixDiag

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def diag() -> Iterator[UnixDiag]:
    made = UnixDiag(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG))
    yield made
    made.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_a_bound_socket_is_found_by_its_file(diag: UnixDiag, tmp_path: Path, kind: int) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(path)
        state = os.stat(path)
        assert diag.has({state.st_dev}, state.st_ino)
        assert not diag.has({state.st_dev}, os.stat(tmp_path).st_ino)
        assert not diag.has({state.st_dev + 1}, state.st_ino)
        if kind == socket.SOCK_DGRAM:
            with socket.socket(socket.AF_UNIX, kind) as other:
                other.connect(path)
                assert diag.has({state.st_dev}, state.st_ino)
    assert not diag.has({state.st_dev}, state.st_ino)


def test_who_is_connected_with_whom(diag: UnixDiag) -> None:
    one, two = socket.socketpair()
    with one, two:
        ours, theirs = (os.fstat(sock.fileno()).st_ino for sock in (one, two))
        assert (diag.peer(ours), diag.peer(theirs)) == (theirs, ours)
    assert diag.peer(ours) == 0
