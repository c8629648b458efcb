"""A backend that is killed: its guests over rings lose nothing. See docs/explanation/restart.md."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from backkit import Front, Stream, sockaddr, until
from heldkit import Mortal, mortal
from xensock.client import sockets
from xensock.client.attachment import open_link
from xensock.transport import url
from xensock.wire import requests, store
from xensock.wire.extensions import ALL, Extension
from xensock.wire.states import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOST = "127.0.0.1"
V1: frozenset[Extension] = frozenset()


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Mortal]:
    with mortal(tmp_path) as made:
        yield made


@pytest.fixture(params=[V1, ALL], ids=["v1", "all"])
def front(backend: Mortal, request: pytest.FixtureRequest) -> Iterator[Front]:
    made = Front(url.connect(backend.url, name="tester"), request.param).handshake()
    try:
        yield made
    finally:
        made.close()


def listening(front: Front) -> tuple[int, int]:
    """A listener, and its port."""
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
    return front.listener(HOST, port), port


def connected(front: Front) -> tuple[int, Stream, socket.socket]:
    """A connection to a peer on the host."""
    with socket.create_server((HOST, 0)) as listener:
        id, stream, response = front.connect(listener.getsockname())
        assert response.ret == 0
        far, _ = listener.accept()
    far.settimeout(20)
    return id, stream, far


def test_connections_listeners_and_calls(backend: Mortal, front: Front) -> None:
    id, stream, far = connected(front)
    listener, port = listening(front)
    cookie, _, taken = front.accept(listener)
    stream.send(b"before")
    assert far.recv(6) == b"before"
    for number in range(3):
        backend.kill()
        word = b"after %d" % number
        stream.send(word)
        assert far.recv(100) == word
        far.send(word)
        assert stream.recv_exactly(len(word)) == word
        another, _, end = connected(front)
        assert front.ret(requests.Release(another)) == 0
        assert end.recv(1) == b""
        end.close()
    with socket.create_connection((HOST, port), 20) as client:
        assert front.result(cookie).ret == 0
        client.sendall(b"to the guest")
        assert taken.recv_exactly(12) == b"to the guest"
        backend.kill()
        taken.send(b"to the client")
        assert client.recv(100) == b"to the client"
    assert taken.recv(1) == b""
    assert front.ret(requests.Release(id)) == 0
    assert far.recv(1) == b""
    far.close()


def test_calls_wait_for_the_next_backend(backend: Mortal, front: Front) -> None:
    listener, port = listening(front)
    pid = backend.pid()
    os.kill(pid, signal.SIGSTOP)
    made = [
        requests.Socket(front.new_id(), socket.AF_INET, socket.SOCK_STREAM, 0) for _ in range(10)
    ]
    cookies = [front.submit(each) for each in made]
    accepting, _, taken = front.accept(listener)
    os.kill(pid, signal.SIGKILL)
    assert [front.result(cookie, 30).ret for cookie in cookies] == [0] * 10
    with socket.create_connection((HOST, port), 20) as client:
        assert front.result(accepting).ret == 0
        client.sendall(b"there")
        assert taken.recv_exactly(5) == b"there"


def test_what_was_released_is_delivered(backend: Mortal, front: Front) -> None:
    """To a peer that takes nothing until the backend was killed, twice."""
    data = os.urandom(16 << 20)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        listener.bind((HOST, 0))
        listener.listen()
        id, stream = front.socket(), front.stream(9)
        where = sockaddr(*listener.getsockname())
        request = requests.Connect(id, where, 0, stream.ref, stream.port)
        assert front.command(request).ret == 0
        far, _ = listener.accept()
    far.settimeout(30)
    sent = fill(stream, data)
    assert sent < len(data)
    assert front.ret(requests.Release(id)) == 0
    backend.kill()
    backend.kill()
    with far:
        everything = b"".join(iter(lambda: far.recv(1 << 20), b""))
    assert len(everything) == sent
    assert everything == data[:sent]


def fill(stream: Stream, data: bytes) -> int:
    """Write as much as there is room for in the ring and behind it; how many bytes that is."""
    sent = stalled = 0
    while sent < len(data) and stalled < 100:
        count, notify = stream.ring.write(data[sent : sent + 65536])
        if notify:
            stream.event.notify()
        sent += count
        stalled = 0 if count else stalled + 1
        if not count:
            stream.ring.arm_write()
            select.select([stream.event.wait_fd], [], [], 0.005)
            stream.event.clear()
    return sent


ROUNDS = 10
CONNECTIONS = 24
CHUNK = 1 << 16


class Traffic(threading.Thread):
    """Random bytes one way, in pieces of random sizes, until told to stop; both ends have a digest."""

    def __init__(self, sender: Any, receiver: Any, seed: int) -> None:
        super().__init__(daemon=True)
        self._sender, self._receiver = sender, receiver
        self._random = random.Random(seed)
        self.stopping = threading.Event()
        self.sent = self.received = 0
        self.digests = [hashlib.sha256(), hashlib.sha256()]
        self.errors: list[BaseException] = []
        self._reader = threading.Thread(target=self._read, daemon=True)

    def run(self) -> None:
        self._reader.start()
        try:
            while not self.stopping.is_set():
                data = self._random.randbytes(self._random.randrange(1, CHUNK))
                self._sender.sendall(data)
                self.digests[0].update(data)
                self.sent += len(data)
            self._sender.shutdown(socket.SHUT_WR)
        except BaseException as error:
            self.errors.append(error)
        self._reader.join(60)

    def _read(self) -> None:
        try:
            while data := self._receiver.recv(CHUNK):
                self.digests[1].update(data)
                self.received += len(data)
        except BaseException as error:
            self.errors.append(error)

    def check(self) -> None:
        self.stopping.set()
        self.join(60)
        assert not self.is_alive()
        assert not self.errors
        assert self.received == self.sent
        assert self.digests[1].digest() == self.digests[0].digest()


def to(where: tuple[str, int], link: Any) -> Any:
    """A guest's connection."""
    sock = sockets.socket(link=link)
    sock.connect(where)
    return sock


def advanced(numbers: Callable[[], list[int]]) -> Callable[[], bool]:
    """Whether all of them are higher than they are now."""
    before = numbers()
    return lambda: all(now > then for now, then in zip(numbers(), before, strict=True))


def killed(backend: Mortal, traffic: list[Traffic]) -> None:
    """Kills the backend; all traffic goes on with the next one."""
    moves = advanced(lambda: [each.received for each in traffic])
    backend.kill()
    until(lambda: moves() or any(each.errors for each in traffic), 60)
    assert not [each.errors for each in traffic if each.errors]


def close(pairs: list[tuple[Any, socket.socket]]) -> None:
    for near, far in pairs:
        near.close()
        far.close()


def whole(traffic: list[Traffic]) -> None:
    for each in traffic:
        each.stopping.set()
    for each in traffic:
        each.check()


@pytest.mark.slow
def test_no_byte_is_lost_and_none_comes_twice(backend: Mortal) -> None:
    """Connections that carry bytes both ways at each kill; some are half-closed by one side, some by the other."""
    link = open_link(backend.url, "tester")
    pairs, traffic = [], []
    with socket.create_server((HOST, 0)) as listener:
        for number in range(CONNECTIONS):
            near = to(listener.getsockname(), link)
            far, _ = listener.accept()
            pairs.append((near, far))
            if number % 3 != 1:
                traffic.append(Traffic(near, far, number))
            else:
                near.shutdown(socket.SHUT_WR)
            if number % 3 != 2:
                traffic.append(Traffic(far, near, number))
            else:
                far.shutdown(socket.SHUT_WR)
        for each in traffic:
            each.start()
        for _ in range(ROUNDS):
            killed(backend, traffic)
    whole(traffic)
    close(pairs)
    link.close()


@pytest.mark.slow
def test_who_takes_over_is_killed_too(backend: Mortal) -> None:
    """At any moment, before it was ever ready or after that: the one after it goes on from there."""
    link = open_link(backend.url, "tester")
    chance = random.Random(6)
    pairs, traffic = [], []
    with socket.create_server((HOST, 0)) as listener:
        for number in range(4):
            near = to(listener.getsockname(), link)
            far, _ = listener.accept()
            pairs.append((near, far))
            traffic += [Traffic(near, far, number), Traffic(far, near, number)]
    for each in traffic:
        each.start()
    for _ in range(5):
        for _ in range(3):
            before = backend.pid()
            os.kill(before, signal.SIGKILL)
            until(lambda before=before: backend.pid() != before, 30)
            select.select([], [], [], chance.uniform(0, 1))
        killed(backend, traffic)
    whole(traffic)
    close(pairs)
    link.close()


@pytest.mark.slow
def test_calls_go_on(backend: Mortal) -> None:
    """Threads connect, bind, listen and accept; none of their calls fails."""
    link = open_link(backend.url, "tester")
    errors: list[BaseException] = []
    done = threading.Event()
    counts = [0, 0]

    def repeat(number: int, what: Callable[[], None]) -> None:
        try:
            while not done.is_set():
                what()
                counts[number] += 1
        except BaseException as error:
            errors.append(error)

    def connect() -> None:
        with to(where, link) as sock:
            sock.sendall(b"ask")
            assert sock.recv(10) == b"ask"

    def serve() -> None:
        with sockets.socket(link=link) as guest:
            guest.bind((HOST, 0))
            guest.listen()
            with socket.create_connection(guest.getsockname(), 30) as client:
                end, _ = guest.accept()
                with end:
                    client.sendall(b"served")
                    assert end.recv(10) == b"served"

    def echo() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.sendall(sock.recv(10))

    with socket.create_server((HOST, 0), backlog=100) as listener:
        listener.settimeout(1)
        where = listener.getsockname()
        threads = [
            threading.Thread(target=repeat, args=(number, what), daemon=True)
            for number, what in enumerate((connect, serve))
        ]

        def echoes() -> None:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    echo()

        threads.append(threading.Thread(target=echoes, daemon=True))
        for thread in threads:
            thread.start()
        for _ in range(ROUNDS):
            moves = advanced(lambda: list(counts))
            backend.kill()
            until(lambda moves=moves: errors or moves(), 60)
            assert not errors
        done.set()
        for thread in threads:
            thread.join(60)
    assert not errors
    link.close()


def test_what_was_agreed_holds_whatever_is_written_later(backend: Mortal) -> None:
    front = Front(url.connect(backend.url, name="tester"), ALL, order=2).handshake()
    nodes = {extension.request: "0" for extension in ALL}
    front.session.write({**nodes, "ring-page-order": "0", "port": "77"})
    front.socket()  # the backend reads what came before it
    backend.kill()
    for _ in range(2 * store.slots(0)):
        front.socket()
    front.close()


def test_a_guest_that_ends_takes_nothing_from_others(backend: Mortal) -> None:
    """Numbers of descriptors that it had are others' by the time that it is gone."""
    ending = Front(url.connect(backend.url, name="ending"), ALL).handshake()
    ending.state(State.CLOSING)
    until(lambda: ending.back == State.CLOSING)
    fronts = [Front(url.connect(backend.url, name="tester"), ALL).handshake() for _ in range(3)]
    backend.kill()
    for front in fronts:
        _, stream, far = connected(front)
        with far:
            stream.send(b"after")
            assert far.recv(100) == b"after"
        front.close()
    ending.close()


def test_without_holder_and_backend_there_is_nothing(backend: Mortal) -> None:
    front = Front(url.connect(backend.url, name="tester"), ALL).handshake()
    _, _, far = connected(front)
    pid = backend.pid()
    os.kill(backend.holder, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    with far, contextlib.suppress(ConnectionResetError):
        assert far.recv(1) == b""
    until(lambda: front.session.error is not None, 10)
    front.close()


def test_the_keeper_may_be_killed(backend: Mortal, front: Front) -> None:
    _, stream, far = connected(front)
    with far:
        pid = backend.keeper()
        os.kill(pid, signal.SIGKILL)
        until(lambda: backend.keeper() not in (0, pid), 10)
        backend.kill()
        stream.send(b"after")
        assert far.recv(100) == b"after"


def test_datagrams_and_names(backend: Mortal) -> None:
    """Sockets go on: the port, the peer, and what was set."""
    link = open_link(backend.url, "tester")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
        sockets.socket(socket.AF_INET, socket.SOCK_DGRAM, link=link) as bound,
        sockets.socket(socket.AF_INET, socket.SOCK_DGRAM, link=link) as peer,
    ):
        far.bind((HOST, 0))
        bound.bind((HOST, 0))
        for sock in (far, bound, peer):
            sock.settimeout(20)
        peer.connect(far.getsockname())
        own = bound.getsockname()
        for _ in range(3):
            backend.kill()
            assert bound.getsockname() == own
            far.sendto(b"to the port", own)
            assert bound.recvfrom(100) == (b"to the port", far.getsockname())
            peer.send(b"to the peer")
            assert far.recv(100) == b"to the peer"
    link.close()


@pytest.mark.slow
def test_upgrades(tmp_path: Path) -> None:
    """The next version takes over in order, or the old one goes on."""
    policy = tmp_path / "policy.toml"
    policy.write_text('[[rule]]\nallow = ["loopback", "listen:any"]\n')
    with mortal(tmp_path, "--policy", str(policy)) as backend:
        front = Front(url.connect(backend.url, name="tester"), ALL).handshake()
        _, stream, far = connected(front)
        command = [
            sys.executable,
            "-m",
            "xensock",
            "upgrade",
            f"--control={backend.daemon.control}",
        ]
        with far:
            for content, status in ((None, 0), ("allow = 5\n", 1), (None, 1)):
                if content:
                    policy.write_text(content)
                before = backend.pid()
                done = subprocess.run(command, capture_output=True, text=True, timeout=60)
                assert done.returncode == status, done.stderr
                assert (backend.pid() == before) is bool(status)
                stream.send(b"after")
                assert far.recv(100) == b"after"
                _, _, more = connected(front)
                more.close()
                Front(url.connect(backend.url, name="another"), ALL).handshake().close()
        front.close()
