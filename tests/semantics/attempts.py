"""What tests of confinement and rules share: attempts in a guest, and services to reach or not."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from world.namespaces import eventually

from .conftest import GUESTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.runner import Guest, Running

    from .conftest import Site

guests = pytest.mark.parametrize("guest", GUESTS, indirect=True)
LOOPS = ["127.0.0.1", "::1"]


def attempt(guest: Guest, site: Site, *words: str, options: tuple[str, ...] = ()) -> Any:
    """One attempt of probes/attempt.py in a guest; what came of it."""
    done = guest.run([*site.probe("attempt.py"), *words], options=options, timeout=25)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def attempts(guest: Guest, site: Site, *lines: str, options: tuple[str, ...] = ()) -> list[Any]:
    """Several attempts in one guest."""
    done = guest.run(
        [*site.probe("attempt.py"), "each"],
        options=options,
        input="".join(f"{line}\n" for line in lines),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()][: len(lines)]


@contextlib.contextmanager
def holding(
    guest: Guest, site: Site, *words: str, options: tuple[str, ...] = ()
) -> Iterator[tuple[Running, Any]]:
    """`listen` or `serve` in a guest for the length of the block, and its first word."""
    read_end, write_end = os.pipe()
    try:
        running = guest.popen([*site.probe("attempt.py"), *words], options=options, stdin=read_end)
        os.close(read_end)
        eventually(lambda: running.stdout or running.process.poll() is not None, 15, "a word")
        assert running.stdout, running.stderr
        yield running, json.loads(running.stdout.splitlines()[0])
    finally:
        os.close(write_end)
    running.wait(10)


class Service:
    """A listener of the test's own that counts its clients and sends each a word."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.clients: list[Any] = []
        listener.settimeout(None)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def _serve(self) -> None:
        while True:
            try:
                conn, address = self.listener.accept()
            except OSError:
                return
            with conn, contextlib.suppress(OSError):
                self.clients.append(address)
                conn.sendall(b"service")

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.listener.close()
