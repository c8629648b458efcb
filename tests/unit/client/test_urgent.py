"""Urgent data over rings: the kernel's own TCP is what it is compared with."""

from __future__ import annotations

import fcntl
import os
import signal
import socket as standard
from typing import TYPE_CHECKING, Any

import pytest

from backkit import until
from urgentkit import PROBES, PythonEnd, natively, seen, standing_at_it
from xensock.client import sockets

if TYPE_CHECKING:
    from collections.abc import Callable

HOST = "127.0.0.1"
PATIENCE_S = 10
probes = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)
Made = Any


def connected(near: Made, far: Made) -> tuple[Any, Any]:
    """A connection: the end that connected, a socket of class `near`, and the one that `far`'s listener accepted."""
    with far(standard.AF_INET) as server:
        server.bind((HOST, 0))
        server.listen()
        client = near(standard.AF_INET)
        client.connect(server.getsockname())
        return client, server.accept()[0]


def between_unix_sockets(probe: Callable[..., None]) -> list[object]:
    """What the kernel's unix sockets make of it."""
    return seen(probe, *map(PythonEnd, standard.socketpair()))


def test_only_poll_tells_a_unix_socket(attached: str) -> None:
    """What differs where reading stands at the urgent byte: POLLIN, beside all that TCP says."""
    tcp, unix = natively(standing_at_it), between_unix_sockets(standing_at_it)

    def without_in(told: list[object]) -> list[object]:
        return [
            tuple(
                [e for e in part if e != "IN"] if isinstance(part, list) else part for part in each
            )
            for each in told
            if isinstance(each, tuple)
        ]

    assert without_in(unix) == without_in(tcp) == tcp


@pytest.mark.parametrize("receiver", ["connected", "accepted"])
@pytest.mark.parametrize("peer", ["kernel", "joined"])
@probes
def test_as_the_kernels(
    attached: str, probe: Callable[..., None], peer: str, receiver: str
) -> None:
    own, other = sockets.socket, standard.socket if peer == "kernel" else sockets.socket
    if receiver == "connected":
        near, far = connected(own, other)
    else:
        far, near = connected(other, own)
    # unix(7), the program's end, counts the urgent byte as one that can be read.
    wanted = between_unix_sockets(probe) if probe is standing_at_it else natively(probe)
    assert seen(probe, PythonEnd(near), PythonEnd(far)) == wanted


@probes
def test_sending_as_the_kernels(attached: str, probe: Callable[..., None]) -> None:
    far, near = connected(sockets.socket, standard.socket)
    assert seen(probe, PythonEnd(near), PythonEnd(far)) == natively(probe)


@pytest.mark.parametrize("made", [standard.socket, sockets.socket], ids=["native", "own"])
def test_the_owner_is_told_by_a_signal(attached: str, made: Made) -> None:
    """SIGURG, for who said F_SETOWN (socket(7))."""
    near, far = connected(made, standard.socket)
    told: list[int] = []
    before = signal.signal(signal.SIGURG, lambda number, _: told.append(number))
    try:
        with near, far:
            fcntl.fcntl(near, fcntl.F_SETOWN, os.getpid())
            assert not told
            far.send(b"!", standard.MSG_OOB)
            until(lambda: told)
            assert near.recv(1, standard.MSG_OOB) == b"!"
    finally:
        signal.signal(signal.SIGURG, before)


@pytest.mark.parametrize("made", [standard.socket, sockets.socket], ids=["native", "own"])
def test_an_accepted_socket_reads_as_its_listener(attached: str, made: Made) -> None:
    option = (standard.SOL_SOCKET, standard.SO_OOBINLINE)
    with made(standard.AF_INET) as server:
        assert server.getsockopt(*option) == 0
        server.setsockopt(*option, 1)
        server.bind((HOST, 0))
        server.listen()
        with standard.create_connection(server.getsockname()) as far, server.accept()[0] as near:
            assert near.getsockopt(*option) == 1
            far.send(b"a!b", standard.MSG_OOB)
            far.shutdown(standard.SHUT_WR)
            near.settimeout(PATIENCE_S)
            assert b"".join(iter(lambda: near.recv(8), b"")) == b"a!b"


@pytest.mark.parametrize("made", [standard.socket, sockets.socket], ids=["native", "own"])
def test_where_there_is_none(attached: str, made: Made) -> None:
    with made(standard.AF_INET) as fresh:
        with pytest.raises(OSError, match="Invalid argument"):
            fresh.recv(1, standard.MSG_OOB)
        with pytest.raises(BrokenPipeError):
            fresh.send(b"!", standard.MSG_OOB)
        fresh.bind((HOST, 0))
        fresh.listen()
        with pytest.raises(OSError, match="not connected"):
            fresh.recv(1, standard.MSG_OOB)
    near, far = connected(made, standard.socket)
    with near, far:
        assert near.send(b"", standard.MSG_OOB) == 0
