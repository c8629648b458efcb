"""The ends of connections that the kernel tells of, and how much went each way."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xensock.calls.address import Endpoint
from xensock.calls.record import Record
from xensock.supervisor import ending
from xensock.supervisor.diag import cookie
from xensock.supervisor.ending import Endings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock import _core


IPV6_ADDRFORM = 1  # ipv6(7); Python does not name it
NOTHING: _core.Heard = (False, False, b"", 0, [], [])


def call(sock: socket.socket) -> Record:
    return Record(time.time(), "g", 7, "p", "connect", "t", connection=cookie(sock))


class Told(list[Record]):
    def about(self, number: int) -> Record:
        """The end of a connection, once it is told."""
        deadline = time.monotonic() + 30
        while not (found := [record for record in self if record.connection == number]):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert len(found) == 1
        return found[0]


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def endings(told: Told) -> Iterator[Endings]:
    made = Endings(told.append)
    made.watch(True)
    made.expects(socket.AF_INET)
    yield made
    made.close()


@contextmanager
def joined(
    host: str = "127.0.0.1", family: int = socket.AF_INET
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A client of this family at a server at a host: of the same one, or "127.0.0.1"."""
    at = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=at) as server, socket.socket(family) as client:
        client.connect(("::ffff:" * (at != family) + host, server.getsockname()[1]))
        far, _ = server.accept()
        with far:
            yield client, far


def swap_bytes(client: socket.socket, far: socket.socket) -> None:
    client.sendall(b"x" * 1000)
    far.recv(1000, socket.MSG_WAITALL)
    far.sendall(b"y" * 50)
    client.recv(50, socket.MSG_WAITALL)


@pytest.mark.parametrize("first", [0, 1], ids=["client closes first", "server closes first"])
def test_an_orderly_end(endings: Endings, told: Told, first: int) -> None:
    with joined() as pair:
        number = cookie(pair[0])
        endings.began(call(pair[0]))
        swap_bytes(*pair)
        pair[first].close()
        assert pair[1 - first].recv(1) == b""
    end = told.about(number)
    assert (end.sent, end.received, end.error, end.result) == (1000, 50, 0, 0)
    assert end.verb == "close"
    assert 0 <= end.duration < 60
    assert endings.live() == 0


def test_a_reset(endings: Endings, told: Told) -> None:
    with joined() as (client, far):
        number = cookie(client)
        endings.began(call(client))
        swap_bytes(client, far)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    end = told.about(number)
    assert (end.sent, end.received, end.error) == (1000, 50, errno.ECONNRESET)


def test_one_that_never_was(endings: Endings, told: Told) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex(("127.0.0.1", 1)) == errno.EINPROGRESS
        number = cookie(sock)
        endings.began(call(sock))
    end = told.about(number)
    assert (end.sent, end.received, end.error) == (0, 0, errno.ENOTCONN)


def test_an_end_before_its_beginning_is_told(endings: Endings, told: Told) -> None:
    with joined() as (client, _):
        record = call(client)
    with joined() as (client, _):
        endings.began(call(client))
        marker = cookie(client)
    told.about(marker)  # so that the first one has been seen, too
    endings.began(record)
    assert told.about(record.connection).error == 0


def test_accepted_connections_outlive_their_listener(endings: Endings, told: Told) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.socket() as client, socket.socket() as other:
        endings.listens(cookie(server), Endpoint.from_python(server.getsockname()), call(server))
        for each in (client, other):
            each.connect(server.getsockname())
        far, where = server.accept()
        later, _ = server.accept()
        numbers = cookie(far), cookie(later)
        swap_bytes(far, client)
        client.close()
        far.close()
        end = told.about(numbers[0])
        assert (end.sent, end.received, end.accepted) == (1000, 50, True)
        assert end.target == f"{where[0]}:{where[1]}"
        assert end.duration == -1.0
        server.close()
        while endings._listening:  # its end is told, too
            time.sleep(0.002)
        other.close()
        later.close()
        assert told.about(numbers[1]).accepted


def test_lost_messages(endings: Endings, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    with joined() as (kept, _), joined() as (client, far):
        endings.began(call(kept))
        number, alive = cookie(client), cookie(kept)
        monkeypatch.setattr(endings, "_hear", lambda link, as_lines: NOTHING)
        endings.began(call(client))
        far.close()  # who closes last is gone at once, the other one waits for a minute (tcp(7))
        client.close()
        while endings._live.keys() - {alive}:
            endings._missed()
        end = told.about(number)
        assert (end.sent, end.received, end.error) == (None, None, 0)
        assert endings.live() == 1


def test_a_beginning_after_its_lost_end(
    endings: Endings, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel dropped the message before anybody had told of the connection."""
    dropped = threading.Event()
    late: list[Record] = []

    def hear(link: socket.socket, as_lines: bool) -> _core.Heard:
        try:
            while True:
                link.recv(4096)
        except BlockingIOError:
            if dropped.is_set():
                endings.began(*late)
                return NOTHING
            dropped.set()
            return (False, True, *NOTHING[2:])

    monkeypatch.setattr(endings, "_hear", hear)
    with joined() as (client, far):
        record = call(client)
        late.append(record)
        far.close()
        client.close()
        assert dropped.wait(30)
    end = told.about(record.connection)
    assert (end.sent, end.received, end.error) == (None, None, 0)


def groups(endings: Endings) -> int:
    """The groups that the kernel has its socket in (/proc/net/netlink), a set of bits."""
    assert endings._running is not None
    inode = os.fstat(endings._running._link.fileno()).st_ino
    lines = [line.split() for line in Path("/proc/net/netlink").read_text().splitlines()]
    (found,) = [line for line in lines if line[-1] == str(inode)]
    return int(found[3], 16)


def test_only_families_that_the_guest_uses_are_listened_for(told: Told) -> None:
    """Everybody's sockets of a family pay for a listener."""
    endings = Endings(told.append)
    endings.watch(True)
    assert groups(endings) == 0
    endings.expects(socket.AF_INET)
    assert groups(endings) == 1 << 0
    endings.expects(socket.AF_INET6)
    assert groups(endings) == 1 << 0 | 1 << 2
    endings.watch(False)
    endings.watch(True)  # what the core has been told to connect by itself goes on
    assert groups(endings) == 1 << 0 | 1 << 2
    endings.close()


def test_a_family_that_was_used_before_anybody_wanted_to_know(told: Told) -> None:
    endings = Endings(told.append)
    endings.expects(socket.AF_INET6)
    endings.watch(True)
    with joined("::1", socket.AF_INET6) as (client, far):
        endings.began(call(client))
        number = cookie(client)
        swap_bytes(client, far)
    end = told.about(number)
    assert (end.sent, end.received, end.error) == (1000, 50, 0)
    endings.close()


def test_a_socket_that_changes_its_family(told: Told) -> None:
    endings = Endings(told.append)
    endings.watch(True)
    endings.expects(socket.AF_INET6)
    with joined(family=socket.AF_INET6) as (client, far):
        endings.began(call(client))
        number = cookie(client)
        client.setsockopt(socket.IPPROTO_IPV6, IPV6_ADDRFORM, socket.AF_INET)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_INET
        swap_bytes(client, far)
    end = told.about(number)
    assert (end.sent, end.received, end.error) == (1000, 50, 0)
    endings.close()


def test_what_is_left_at_the_end(told: Told) -> None:
    endings = Endings(told.append)
    endings.watch(True)
    with joined() as (client, far):
        swap_bytes(client, far)
        endings.began(call(client))
        endings.close(0.01)
        end = told.about(cookie(client))
    assert end.error == errno.EINPROGRESS
    assert end.sent == 1000


def test_nobody_wants_to_know(told: Told) -> None:
    endings = Endings(told.append)
    with joined() as (client, _):
        endings.began(call(client))
        assert endings.live() == 0
        endings.watch(True)
        endings.began(call(client))
        assert endings.live() == 1
        endings.watch(False)
        assert endings.live() == 0
    endings.close()
    assert told == []


def test_ends_that_others_tell(told: Told) -> None:
    record = Record(time.time() - 5, "g", 7, "p", "connect", "t", datapath="relay", connection=4)
    Endings(told.append).ended(record)(10, 20, errno.EPIPE)
    (end,) = told
    assert (end.sent, end.received, end.error, end.result) == (10, 20, errno.EPIPE, -1)
    assert end.duration >= 5
    assert ending.MOST > 100_000
