"""Kills of the backend at scale: a thousand connections over rings, a hundred listeners, ten in a row."""

from __future__ import annotations

import contextlib
import hashlib
import random
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from heldkit import mortal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONNECTIONS, LISTENERS, KILLS = 1000, 100, 10
GUESTS = 2  # of a backend with few descriptors, one may not have as many
BLOCK = 1024
HOST = "127.0.0.1"
PROGRAM = Path(__file__).with_name("echoes.py")


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Client:
    """A peer on the host: what it sends comes back, and then it sends more."""

    def __init__(self, number: int, port: int) -> None:
        self.sock = socket.create_connection((HOST, port), 60)
        self.sock.setblocking(False)
        self._random = random.Random(number)
        self._sent, self._got = hashlib.sha256(), hashlib.sha256()
        self.sent = self.received = 0

    def send(self) -> None:
        data = self._random.randbytes(BLOCK)
        assert self.sock.send(data) == BLOCK
        self._sent.update(data)
        self.sent += BLOCK

    def receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = self.sock.recv(1 << 16)
            assert data, "the connection ended"
            self._got.update(data)
            self.received += len(data)

    def whole(self) -> bool:
        return self.sent == self.received and self._sent.digest() == self._got.digest()


class Clients(threading.Thread):
    """Has each client send again what comes back, until it is told to stop."""

    def __init__(self, clients: list[Client]) -> None:
        super().__init__(daemon=True)
        self.clients = clients
        self.sending = True
        self.error: BaseException | None = None
        self.over = threading.Event()

    def moves(self) -> Callable[[], bool]:
        """Whether something has come to every client since this was asked for."""
        before = [each.received for each in self.clients]
        return lambda: all(
            each.received > mark for each, mark in zip(self.clients, before, strict=True)
        )

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            try:
                for each in self.clients:
                    selector.register(each.sock, selectors.EVENT_READ, each)
                    each.send()
                while not self.over.is_set():
                    for key, _ in selector.select(0.1):
                        key.data.receive()
                        if self.sending and key.data.sent == key.data.received:
                            key.data.send()
            except BaseException as error:
                self.error = error

    def wait(self, check: Callable[[], bool], patience: float = 120) -> None:
        """Looks seldom: whoever waits here takes the processor from the clients."""
        deadline = time.monotonic() + patience
        while not check():
            assert self.error is None
            assert time.monotonic() < deadline, f"not within {patience} s"
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_connections(tmp_path: Path) -> None:
    with mortal(tmp_path) as backend, contextlib.ExitStack() as undo:
        guests, ports = [], []
        for _ in range(GUESTS):
            argv = [sys.executable, str(PROGRAM), backend.url, str(LISTENERS // GUESTS)]
            pipe = subprocess.PIPE
            guest = undo.enter_context(subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True))
            undo.callback(guest.kill)
            guests.append(guest)
            assert guest.stdout is not None
            ports += [int(word) for word in guest.stdout.readline().split()]
        clients = Clients([Client(n, ports[n % LISTENERS]) for n in range(CONNECTIONS)])
        clients.start()
        clients.wait(clients.moves())
        for _ in range(KILLS):
            backend.kill()
            clients.wait(clients.moves())
        clients.sending = False
        clients.wait(lambda: all(client.whole() for client in clients.clients))
        clients.over.set()
        clients.join(30)
        counts = [int(guest.communicate(timeout=60)[0]) for guest in guests]
        assert sum(counts) == CONNECTIONS
        for client in clients.clients:
            client.sock.close()
