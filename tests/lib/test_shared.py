"""Two guests of one backend over libxensock: they share their pages, and it looks as TCP."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import select
import socket
import struct
import threading
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from libxensock import V1, Attachment, Socket

from backkit import free_port, until
from daemonkit import daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemonkit import Daemon

HOST = "127.0.0.1"
PATIENCE = 10
RESET = struct.pack("ii", 1, 0)


@pytest.fixture
def one(backend: Daemon) -> Iterator[Attachment]:
    with Attachment(backend.url, "one") as attachment:
        assert attachment.has("shared-rings")
        yield attachment


@pytest.fixture(params=["shared", "copied"])
def two(backend: Daemon, request: pytest.FixtureRequest) -> Iterator[Attachment]:
    """The guest that connects; one that speaks v1 has no pages in common with anybody."""
    flags = 0 if request.param == "shared" else V1
    with Attachment(backend.url, "two", flags) as attachment:
        yield attachment


@pytest.fixture
def sharing(backend: Daemon) -> Iterator[Attachment]:
    with Attachment(backend.url, "two") as attachment:
        yield attachment


def listener(guest: Attachment) -> tuple[Socket, tuple[str, int]]:
    at = (HOST, free_port())
    sock = guest.socket()
    sock.bind(at)
    sock.listen()
    return sock, at


def joined(one: Attachment, two: Attachment) -> tuple[Socket, Socket]:
    """A connection: the end that connected, and the one that was accepted."""
    waiting, at = listener(one)
    with waiting:
        near = two.connected(at)
        far, _ = waiting.accept()
    return near, far


def shared_pages(backend: Daemon) -> int:
    """How many connections' pages this backend has made and not yet closed."""
    links = []
    for entry in Path(f"/proc/{backend.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since the directory was read
            links.append(os.readlink(entry))
    return sum("memfd:xensock " in link for link in links)


def test_bytes_both_ways(one: Attachment, two: Attachment) -> None:
    near, far = joined(one, two)
    with near, far:
        near.send(b"question")
        assert far.recv(100) == b"question"
        far.send(b"answer")
        assert near.recv(100) == b"answer"


def test_pages_are_shared_and_given_back(
    backend: Daemon, one: Attachment, sharing: Attachment
) -> None:
    before = shared_pages(backend)
    near, far = joined(one, sharing)
    assert shared_pages(backend) > before
    near.close()
    far.close()
    assert until(lambda: shared_pages(backend) <= before)


@pytest.mark.parametrize("forward", [True, False], ids=["from-client", "from-server"])
def test_everything_arrives_whole(one: Attachment, two: Attachment, forward: bool) -> None:
    near, far = joined(one, two)
    source, sink = (near, far) if forward else (far, near)
    data = bytes(range(253)) * 60_000
    sender = threading.Thread(target=lambda: source.send(data))
    sender.start()
    got = sink.recv(len(data), socket.MSG_WAITALL)
    sender.join(PATIENCE)
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
    near.close()
    far.close()


def test_half_close(one: Attachment, sharing: Attachment) -> None:
    near, far = joined(one, sharing)
    with near, far:
        near.send(b"all of it")
        near.shutdown(socket.SHUT_WR)
        assert far.rest() == b"all of it"
        assert far.poll(select.POLLOUT | select.POLLRDHUP, 0) == select.POLLOUT | select.POLLRDHUP
        far.send(b"and the answer")
        far.shutdown(socket.SHUT_WR)
        assert near.rest() == b"and the answer"
        with pytest.raises(BrokenPipeError):
            near.send(b"x")


def test_close_leaves_what_was_sent(one: Attachment, sharing: Attachment) -> None:
    near, far = joined(one, sharing)
    data = b"z" * 900_000
    near.send(data)
    near.close()
    with far:
        assert far.rest() == data
        with pytest.raises(BrokenPipeError):
            far.send(b"x")


def test_closing_with_unread_bytes_resets(one: Attachment, sharing: Attachment) -> None:
    near, far = joined(one, sharing)
    near.send(b"nobody reads this")
    far.close()
    with near:
        while not near.poll(select.POLLIN, PATIENCE) & select.POLLERR:
            pass
        with pytest.raises(ConnectionResetError):
            near.recv(1)


def test_a_reset(one: Attachment, sharing: Attachment) -> None:
    near, far = joined(one, sharing)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    near.send(b"last words")
    near.close()
    with far:
        assert far.poll(select.POLLIN, PATIENCE) & select.POLLIN
        assert far.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            far.recv(1)


def test_a_connection_waits_for_accept(one: Attachment, sharing: Attachment) -> None:
    waiting, at = listener(one)
    with waiting:
        near = sharing.connected(at)
        near.send(b"early")
        near.close()
        far, peer = waiting.accept()
        assert peer is not None
        with far:
            assert far.rest() == b"early"
        # The answer to what was written before anybody was there wakes its reader.
        near = sharing.connected(at)
        near.send(b"ping")
        answers: list[bytes] = []
        reader = threading.Thread(target=lambda: answers.append(near.recv(10)))
        reader.start()
        far, _ = waiting.accept()
        assert far.recv(10) == b"ping"
        far.send(b"pong")
        reader.join(PATIENCE)
        assert answers == [b"pong"]
        near.close()
        far.close()


def test_a_listener_that_goes_resets_what_waits(one: Attachment, sharing: Attachment) -> None:
    waiting, at = listener(one)
    near = sharing.connected(at)
    waiting.close()
    with near:
        while not near.poll(select.POLLIN, PATIENCE) & select.POLLERR:
            pass
        with pytest.raises(ConnectionResetError):
            near.recv(1)


def test_connecting_without_waiting(one: Attachment, sharing: Attachment) -> None:
    waiting, at = listener(one)
    with waiting, sharing.socket(kind=socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as near:
        with pytest.raises(BlockingIOError):
            near.connect(at)
        assert near.poll(select.POLLOUT, PATIENCE) == select.POLLOUT
        far, _ = waiting.accept()
        with far:
            far.send(b"hello")
            assert near.poll(select.POLLIN, PATIENCE) == select.POLLIN
            assert near.recv(10) == b"hello"


def test_connecting_without_waiting_to_pages_that_came_first(
    backend: Daemon, one: Attachment, sharing: Attachment
) -> None:
    """Nothing takes in the backend's answers until the program asks: by then the pages are there, too."""
    before = shared_pages(backend)
    waiting, at = listener(one)
    with waiting, sharing.socket(kind=socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as near:
        with pytest.raises(BlockingIOError):
            near.connect(at)
        assert until(lambda: shared_pages(backend) > before)
        assert near.poll(select.POLLOUT, PATIENCE) == select.POLLOUT
        far, _ = waiting.accept()
        with far:
            far.send(b"hello")
            assert near.recv(10) == b"hello"


def test_a_full_ring_holds_its_writer_back(one: Attachment, sharing: Attachment) -> None:
    near, far = joined(one, sharing)
    with near, far:
        sent = near.send(bytes(8 << 20), socket.MSG_DONTWAIT)
        assert 0 < sent < 8 << 20
        assert near.poll(select.POLLOUT, 0) == 0
        assert len(far.recv(sent, socket.MSG_WAITALL)) == sent
        assert near.poll(select.POLLOUT, PATIENCE) == select.POLLOUT


def test_a_guest_that_vanishes(backend: Daemon, one: Attachment) -> None:
    other = Attachment(backend.url, "mortal")
    near, far = joined(one, other)
    near.send(b"last words")
    other.__exit__()
    with far:
        assert far.rest() == b"last words"


def test_both_ends_in_one_guest(one: Attachment) -> None:
    near, far = joined(one, one)
    with near, far:
        near.send(b"to myself")
        assert far.recv(100) == b"to myself"
        far.send(b"indeed")
        assert near.recv(100) == b"indeed"


def kernel_connections(port: int) -> int:
    """Connections of this host's TCP that have that port at an end."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(f":{port:04X} " in line and line.split()[3] == "01" for line in lines)


def test_names_are_tcps_and_no_connection_is_the_kernels(one: Attachment, two: Attachment) -> None:
    """Names where the guest has them: one that speaks v1 knows those that it gave itself."""
    waiting, at = listener(one)
    with waiting, two.connected(at) as near:
        far, peer = waiting.accept()
        with far:
            assert peer is not None
            assert peer[0] == HOST
            assert peer[1] not in (0, at[1])
            assert far.getpeername() == peer
            assert far.getsockname() == at == near.getpeername()
            if two.has("names"):
                assert near.getsockname() == peer
            near.send(b"x")
            assert far.recv(1) == b"x"
            assert kernel_connections(at[1]) == 0


def test_policy_and_audit_are_tcps(tmp_path: Path) -> None:
    """What shares pages is decided and recorded before; refused, it shares nothing."""
    closed, open_ = free_port(), free_port()
    rules = ("--allow=loopback", "--allow=listen:any", f"--deny=loopback:{closed}")
    with (
        daemon(tmp_path, *rules) as made,
        Attachment(made.url, "one") as one,
        Attachment(made.url, "two") as two,
    ):
        before = shared_pages(made)
        for port in (closed, open_):
            with one.socket() as waiting:
                waiting.bind((HOST, port))
                waiting.listen()
                if port == closed:
                    with pytest.raises(PermissionError):
                        two.connected((HOST, port))
                    assert shared_pages(made) == before
                    continue
                with two.connected((HOST, port)), waiting.accept()[0]:
                    assert shared_pages(made) > before
    told = [
        (r["guest"], r["verb"], r["decision"], r["rule"])
        for r in made.records()
        if r["verb"] in ("connect", "accept")
    ]
    assert told == [
        ("two", "connect", "deny", f"loopback:{closed}"),
        ("two", "connect", "allow", "loopback"),
        ("one", "accept", "guest", told[-1][3]),
    ]


def moved(backend: Daemon, name: str) -> tuple[int, int]:
    """What the guest of that name has sent and received."""
    (number,) = [g["guest"] for g in backend.ask("guests")["guests"] if g["name"] == name]
    counters = backend.ask("counters", guest=number)["counters"]
    return counters["sent"], counters["received"]


def test_counters_are_what_was_read(backend: Daemon, one: Attachment, sharing: Attachment) -> None:
    near, far = joined(one, sharing)
    near.send(b"12345")
    far.recv(5, socket.MSG_WAITALL)
    far.send(b"123")
    near.recv(3, socket.MSG_WAITALL)
    assert moved(backend, "two") == (5, 3)
    assert moved(backend, "one") == (3, 5)
    near.close()
    far.close()
    assert moved(backend, "two") == (5, 3)
    assert moved(backend, "one") == (3, 5)


def test_many_come_and_go(backend: Daemon, one: Attachment, sharing: Attachment) -> None:
    before = shared_pages(backend)
    waiting, at = listener(one)
    with waiting:
        for _ in range(150):
            near = sharing.connected(at)
            far, _ = waiting.accept()
            near.send(b"x")
            assert far.recv(1) == b"x"
            far.send(b"y")
            assert near.recv(1) == b"y"
            near.close()
            far.close()
    assert until(lambda: shared_pages(backend) <= before)


def mapped() -> set[tuple[int, int, str]]:
    """Where this process has memory of memfds: (address, bytes, inode)."""
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:xensock" in line:
            start, end = (int(at, 16) for at in line.split()[0].split("-"))
            found.add((start, end - start, line.split()[4]))
    return found


@pytest.mark.slow
def test_a_guest_that_scribbles_harms_its_own_connection_only(
    backend: Daemon, one: Attachment, sharing: Attachment
) -> None:
    """Both guests are this process, so it can write where a hostile one would."""
    spared, far_spared = joined(one, sharing)
    random = Random(3)
    for _ in range(20):
        before = mapped()
        near, far = joined(one, sharing)
        pages = [region for region in mapped() - before if region[1] == 513 * 4096]
        assert len(pages) == 2  # each guest has its view
        over = threading.Event()

        def scribble(base: int = pages[0][0], over: threading.Event = over) -> None:
            word = ctypes.c_uint32.from_address
            while not over.is_set():
                word(base + random.randrange(0, 136, 4)).value = random.getrandbits(32)

        thread = threading.Thread(target=scribble)
        thread.start()
        for _ in range(300):
            for sock in (near, far):
                with contextlib.suppress(OSError):
                    assert 0 <= sock.send(bytes(5000), socket.MSG_DONTWAIT) <= 5000
                with contextlib.suppress(OSError):
                    assert len(sock.recv(7000, socket.MSG_DONTWAIT)) <= 7000
                sock.poll(select.POLLIN | select.POLLOUT, 0)
        over.set()
        thread.join(PATIENCE)
        near.close()
        far.close()
        spared.send(b"still here")
        assert far_spared.recv(10, socket.MSG_WAITALL) == b"still here"
    assert backend.ask("counters")["ok"]
    spared.close()
    far_spared.close()
