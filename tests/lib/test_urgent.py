"""Urgent data in libxensock: the kernel's own TCP is what it is compared with."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest
from libxensock import V1, Attachment, Socket

from backkit import free_port
from urgentkit import PROBES, End, PythonEnd, natively, seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemonkit import Daemon

HOST = "127.0.0.1"
OPTION = (socket.SOL_SOCKET, socket.SO_OOBINLINE)
probes = pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.__name__)


@pytest.fixture
def guest(backend: Daemon) -> Iterator[Attachment]:
    with Attachment(backend.url, "one") as attachment:
        assert attachment.has("urgent")
        yield attachment


def listening(guest: Attachment) -> tuple[Socket, tuple[str, int]]:
    sock, at = guest.socket(), (HOST, free_port())
    sock.bind(at)
    sock.listen()
    return sock, at


def connected(guest: Attachment) -> tuple[Socket, PythonEnd]:
    with socket.create_server((HOST, 0)) as server:
        near = guest.connected(server.getsockname())
        return near, PythonEnd(server.accept()[0])


@probes
def test_received_as_the_kernels(guest: Attachment, probe: Callable[..., None]) -> None:
    near, far = connected(guest)
    assert seen(probe, near, far) == natively(probe)


@probes
def test_sent_as_the_kernels(guest: Attachment, probe: Callable[..., None]) -> None:
    far, near = connected(guest)
    assert seen(probe, near, far) == natively(probe)


@pytest.mark.parametrize("receiver", ["connected", "accepted"])
@probes
def test_between_guests_that_share_pages(
    guest: Attachment, backend: Daemon, probe: Callable[..., None], receiver: str
) -> None:
    with Attachment(backend.url, "two") as other:
        waiting, at = listening(guest)
        with waiting:
            ends: list[End] = [other.connected(at), waiting.accept()[0]]
        if receiver == "accepted":
            ends.reverse()
        assert seen(probe, *ends) == natively(probe)


def test_an_accepted_socket_reads_as_its_listener(guest: Attachment) -> None:
    waiting, at = listening(guest)
    with waiting:
        waiting.read_inline(True)
        with socket.create_connection(at) as far, waiting.accept()[0] as near:
            assert near.getsockopt(*OPTION) == 1
            far.send(b"a!", socket.MSG_OOB)
            far.shutdown(socket.SHUT_WR)
            assert near.rest() == b"a!"


def test_where_there_is_none(guest: Attachment, backend: Daemon) -> None:
    with guest.socket() as fresh, pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        fresh.recv(1, socket.MSG_OOB)
    waiting, _ = listening(guest)
    with waiting, pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        waiting.recv(1, socket.MSG_OOB)
    with Attachment(backend.url, "old", V1) as old:
        near, far = connected(old)
        with near, pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
            near.send(b"!", socket.MSG_OOB)
        far.close()


def test_a_guest_without_the_extension_reads_the_others(guest: Attachment, backend: Daemon) -> None:
    """As TCP's receivers that do not ask for it: the byte is lost."""
    with Attachment(backend.url, "old", V1) as old:
        waiting, at = listening(old)
        with waiting, guest.connected(at) as far, waiting.accept()[0] as near:
            far.send(b"ab!", socket.MSG_OOB)
            far.send(b"cd")
            far.shutdown(socket.SHUT_WR)
            assert near.rest() == b"abcd"
