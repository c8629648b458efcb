"""The ends of connections that the kernel tells of, and how much went each way."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from endkit import joined

from xensock import cgroups
from xensock.calls.address import Endpoint
from xensock.calls.record import Record
from xensock.cgroups import own_cgroup
from xensock.supervisor import end_sources, ending
from xensock.supervisor.diag import cookie
from xensock.supervisor.end_sources import Multicast, Program
from xensock.supervisor.ending import Endings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock import _core


EPOCH = time.time() - time.monotonic()
IPV6_ADDRFORM = 1  # ipv6(7); Python does not name it
NOTHING: _core.Heard = (False, False, b"", 0, [], [])


def now() -> float:
    return EPOCH + time.monotonic()


def call(sock: socket.socket, began: float | None = None) -> Record:
    """By which the socket was connected, then or a moment ago."""
    moment = now() if began is None else began
    return Record(moment, "g", 7, "p", "connect", "t", connection=cookie(sock))


class Told(list[Record]):
    def about(self, number: int) -> Record:
        """The end of a connection, once it is told."""
        (found,) = self.ends_of(number, 1)
        return found

    def ends_of(self, number: int, count: int) -> list[Record]:
        """The ends of connections of one socket, once so many are told."""
        deadline = time.monotonic() + 30
        while len(found := [each for each in self if each.connection == number]) < count:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        assert len(found) == count
        return found


@pytest.fixture
def told() -> Told:
    return Told()


def refuse(*_: object) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture
def multicast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ordinary users have it."""
    monkeypatch.setattr(ending, "Program", refuse)


@pytest.fixture
def program() -> None:
    """As root has it."""
    if os.geteuid():
        pytest.skip("programs in the kernel are root's to load")


def watching(told: Told, kind: type[Program | Multicast]) -> Endings:
    made = Endings(told.append, EPOCH)
    made.watch(True)
    made.expects(socket.AF_INET)
    assert isinstance(made._source, kind)
    return made


@pytest.fixture(params=["multicast", "program"])
def endings(told: Told, request: pytest.FixtureRequest) -> Iterator[Endings]:
    request.getfixturevalue(request.param)
    made = watching(told, Multicast if request.param == "multicast" else Program)
    yield made
    made.close()


@pytest.fixture
def by_multicast(told: Told, multicast: None) -> Iterator[Endings]:
    made = watching(told, Multicast)
    yield made
    made.close()


@pytest.fixture
def by_program(told: Told, program: None) -> Iterator[Endings]:
    made = watching(told, Program)
    yield made
    made.close()


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
        began = now()
        assert sock.connect_ex(("127.0.0.1", 1)) == errno.EINPROGRESS
        number = cookie(sock)
        endings.began(call(sock, began))
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


def test_lost_messages(by_multicast: Endings, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    endings = by_multicast
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
    by_multicast: Endings, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel dropped the message before anybody had told of the connection."""
    endings = by_multicast
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
    assert isinstance(endings._source, Multicast)
    inode = os.fstat(endings._source._link.fileno()).st_ino
    lines = [line.split() for line in Path("/proc/net/netlink").read_text().splitlines()]
    (found,) = [line for line in lines if line[-1] == str(inode)]
    return int(found[3], 16)


def test_only_families_that_the_guest_uses_are_listened_for(told: Told, multicast: None) -> None:
    """Everybody's sockets of a family pay for a listener."""
    endings = Endings(told.append, EPOCH)
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
    endings = Endings(told.append, EPOCH)
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
    endings = Endings(told.append, EPOCH)
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
    endings = Endings(told.append, EPOCH)
    endings.watch(True)
    with joined() as (client, far):
        swap_bytes(client, far)
        endings.began(call(client))
        endings.close(0.01)
        end = told.about(cookie(client))
    assert end.error == errno.EINPROGRESS
    assert end.sent == 1000


@contextmanager
def a_server() -> Iterator[socket.socket]:
    """Takes the connections that it is left to its backlog to take."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_socket_that_connects_again(by_program: Endings, told: Told) -> None:
    """Each of its connections has an end."""
    with a_server() as server, socket.socket() as sock:
        number = cookie(sock)
        sock.setblocking(False)
        began = now()
        assert sock.connect_ex(("127.0.0.1", 1)) == errno.EINPROGRESS
        by_program.began(call(sock, began))
        assert sock.connect_ex(server.getsockname()) == errno.ECONNREFUSED  # the first one's
        began = now()
        assert sock.connect_ex(server.getsockname()) == errno.EINPROGRESS
        by_program.began(call(sock, began))
        sock.setblocking(True)
        sock.sendall(b"x" * 1000)
        sock.shutdown(socket.SHUT_WR)
        far, _ = server.accept()
        far.recv(1000, socket.MSG_WAITALL)
        far.close()
        first, second = told.ends_of(number, 2)
    assert (first.sent, first.received, first.error) == (0, 0, errno.ENOTCONN)
    assert (second.sent, second.received, second.error) == (1000, 0, 0)


def test_an_attempt_that_failed_is_no_end_of_the_next_connection(
    by_program: Endings, told: Told
) -> None:
    """It was told in the call's answer."""
    with a_server() as server, socket.socket() as sock:
        number = cookie(sock)
        assert sock.connect_ex(("127.0.0.1", 1)) == errno.ECONNREFUSED
        began = now()
        sock.connect(server.getsockname())
        by_program.began(call(sock, began))
        assert told == []
        assert by_program.live() == 1
        sock.sendall(b"x")
    assert told.about(number).sent == 1


def test_the_moment_is_that_of_the_end(by_program: Endings, told: Told) -> None:
    """Not that at which it was read."""
    assert isinstance(by_program._source, Program)
    with joined() as (client, far):
        began = now()
        by_program.began(call(client, began))
        number = cookie(client)
        with by_program._source._attached._lock:  # nobody reads
            far.close()
            client.close()
            ended = now()
            deadline = time.monotonic() + 0.05
            while time.monotonic() < deadline:
                pass
    end = told.about(number)
    assert began < end.time < ended
    assert end.duration == pytest.approx(end.time - began)


def test_a_listener_that_listens_again(by_program: Endings, told: Told) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        for _ in range(3):
            server.shutdown(socket.SHUT_RD)  # it is closed, to the kernel
            server.listen()
            at = Endpoint.from_python(server.getsockname())  # another port, if it chose that
            by_program.listens(cookie(server), at, call(server))
        client.connect(server.getsockname())
        far, _ = server.accept()
        number = cookie(far)
        swap_bytes(far, client)
        client.close()
        far.close()
        end = told.about(number)
        assert (end.sent, end.received, end.accepted) == (1000, 50, True)
        assert by_program.live() == 1


def test_messages_that_a_full_ring_lost(
    told: Told, program: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_sources, "RING", 4096)
    endings = watching(told, Program)
    assert isinstance(endings._source, Program)
    numbers = []
    with joined() as (kept, _):
        endings.began(call(kept))
        with endings._source._attached._lock:
            for _ in range(20):
                with joined() as (client, far):
                    endings._begin(call(client))
                    numbers.append(cookie(client))
                    client.close()
                    far.recv(1)
        ends = [told.about(number) for number in numbers]
        assert endings.live() == 1
    assert None in {end.sent for end in ends}
    assert {end.sent for end in ends} <= {0, None}
    endings.close()


def test_guests_share_the_program(told: Told, program: None) -> None:
    others = Told()
    endings, other = watching(told, Program), watching(others, Program)
    assert isinstance(endings._source, Program)
    assert isinstance(other._source, Program)
    assert endings._source._attached is other._source._attached
    with joined() as (client, _), joined() as (elsewhere, _):
        endings.began(call(client))
        other.began(call(elsewhere))
        numbers = cookie(client), cookie(elsewhere)
    assert told.about(numbers[0]).error == 0
    assert others.about(numbers[1]).error == 0
    assert len(told) == len(others) == 1
    endings.close()
    with joined() as (client, _):
        other.began(call(client))
        number = cookie(client)
    assert others.about(number).error == 0
    other.close()
    assert Program._shared is None


def test_one_guests_fault_is_not_the_others(
    told: Told,
    program: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    others = Told()
    endings, other = watching(told, Program), watching(others, Program)
    monkeypatch.setattr(endings, "_take", refuse)
    for _ in range(2):  # who reads goes on
        others.clear()
        with joined() as (client, _):
            other.began(call(client))
            number = cookie(client)
        assert others.about(number).error == 0
    assert "PermissionError" in caplog.text
    for each in (endings, other):
        each.close()


ELSEWHERE = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    with socket.create_connection(server.getsockname()) as client, server.accept()[0] as far:
        client.sendall(b"x" * 777)
        far.recv(777, socket.MSG_WAITALL)
"""


def test_the_same_port_of_another_network(by_program: Endings, told: Told) -> None:
    """Whoever is in this cgroup has no part in what a guest accepts."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        at = Endpoint.from_python(server.getsockname())
        by_program.listens(cookie(server), at, call(server))
        inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "-"]
        there = [sys.executable, "-c", ELSEWHERE, str(at.port)]
        subprocess.run(["unshare", "--net", *inside, *there], check=True, timeout=60)
        with socket.create_connection(server.getsockname()) as client:
            far, _ = server.accept()
            number = cookie(far)
            client.close()
            far.close()
        assert told.about(number).accepted
        assert len(told) == 1


def test_ends_that_had_to_go(by_program: Endings, told: Told) -> None:
    """Of one socket, more than are remembered before their beginnings are told: no other connection has their bytes."""
    with a_server() as server, socket.socket() as sock:
        number = cookie(sock)
        records = []
        sock.setblocking(False)
        for _ in range(50):
            began = now()
            if sock.connect_ex(("127.0.0.1", 1)) == errno.EINPROGRESS:
                records.append(call(sock, began))
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        sock.connect_ex(server.getsockname())  # ECONNABORTED, of the last one
        began = now()
        sock.setblocking(True)
        sock.connect(server.getsockname())
        sock.sendall(b"x" * 5000)
        by_program.began(*records, call(sock, began))
        assert by_program.live() == 1
        sock.close()
        ends = told.ends_of(number, len(records) + 1)
    assert ends[-1].sent == 5000
    assert {end.sent for end in ends[:-1]} == {0, None}
    assert len(records) > 8


def test_where_the_program_sees_none_of_our_sockets(
    told: Told, program: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is at another cgroup than it should be."""
    other = own_cgroup() / f"xensock-test-{os.getpid()}"
    other.mkdir()
    try:
        monkeypatch.setattr(cgroups, "own_cgroup", lambda: other)
        endings = watching(told, Multicast)
        endings.close()
    finally:
        other.rmdir()
    assert Program._shared is None


def test_nobody_wants_to_know(told: Told) -> None:
    endings = Endings(told.append, EPOCH)
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
    Endings(told.append, EPOCH).ended(record)(10, 20, errno.EPIPE)
    (end,) = told
    assert (end.sent, end.received, end.error, end.result) == (10, 20, errno.EPIPE, -1)
    assert end.duration >= 5
    assert ending.MOST > 100_000
