"""A backend that is killed while a guest connects or is connected to: nobody has another's connection after that.
See docs/explanation/restart.md."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backkit import Front, Serving, front, sockaddr, until
from heldkit import Mortal, mortal
from xensock.pvcalls.serving import moving
from xensock.transport import url
from xensock.wire import indexes, requests
from xensock.wire.extensions import ALL

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
ANYTHING = 'allow = ["loopback", "listen:any"]\n'
SYN_SENT = "02"


@contextlib.contextmanager
def guest(backend: Mortal, name: str) -> Iterator[Front]:
    made = Front(url.connect(backend.url, name=name), ALL).handshake()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def full() -> Iterator[socket.socket]:
    """A listener at which further connections wait for an answer."""
    with socket.socket() as listener, contextlib.ExitStack() as clients:
        listener.bind((HOST, 0))
        listener.listen(0)
        where = listener.getsockname()
        while not connecting(where[1]):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(where)
            until(lambda client=client: states(client.getsockname()[1], where[1]), 10)
        yield listener


def states(local: int | None, remote: int) -> list[str]:
    """Of sockets of TCP with that peer's port, as proc(5) has them."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = [(int(line[1][9:], 16), int(line[2][9:], 16), line[3]) for line in lines]
    return [state for own, peer, state in ports if peer == remote and local in (None, own)]


def connecting(port: int) -> int:
    return states(None, port).count(SYN_SENT)


@pytest.mark.parametrize("flags", [0, requests.ConnectFlag.ASYNC], ids=["waits", "async"])
def test_a_connection_that_other_rules_forbid(tmp_path: Path, flags: requests.ConnectFlag) -> None:
    """One that was under way; the socket is connected to what it is told after that."""
    rules = tmp_path / "policy.toml"
    rules.write_text(f"[[rule]]\n{ANYTHING}")
    with (
        mortal(tmp_path, "--policy", str(rules)) as backend,
        guest(backend, "tester") as front,
        full() as first,
        socket.create_server((HOST, 0)) as second,
    ):
        forbidden = first.getsockname()
        id, stream, more = front.socket(), front.stream(), front.stream()
        request = requests.Connect(id, sockaddr(*forbidden), flags, stream.ref, stream.port)
        before = connecting(forbidden[1])
        cookie = front.submit(request)
        if flags:
            assert front.result(cookie).ret != 0
        until(lambda: connecting(forbidden[1]) > before)
        rules.write_text(f'[[rule]]\ndeny = ["{HOST}:{forbidden[1]}"]\n[[rule]]\n{ANYTHING}')
        backend.kill()
        if not flags:
            assert front.result(cookie).ret < 0
        assert connecting(forbidden[1]) == before
        again = requests.Connect(id, sockaddr(*second.getsockname()), 0, more.ref, more.port)
        second.settimeout(20)
        first.settimeout(0.1)
        for _ in range(before + 3):  # there is room for the one that is forbidden
            with contextlib.suppress(TimeoutError):
                first.accept()[0].close()
        assert front.command(again).ret == 0
        far, _ = second.accept()
        with far:
            more.send(b"there")
            assert far.recv(10) == b"there"


def test_a_connection_whose_bytes_cannot_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> int:
        raise OSError(12, "no memory")

    with (
        Serving() as serving,
        front(serving) as made,
        socket.create_server((HOST, 0)) as first,
        socket.create_server((HOST, 0)) as second,
    ):
        with monkeypatch.context() as broken:
            broken.setattr(moving, "join", fails)
            id, _, response = made.connect(first.getsockname())
        assert response.ret == -12
        stream = made.stream()
        where = sockaddr(*second.getsockname())
        assert made.ret(requests.Connect(id, where, 0, stream.ref, stream.port)) == 0
        second.settimeout(20)
        far, _ = second.accept()
        with far:
            stream.send(b"there")
            assert far.recv(10) == b"there"


def test_a_connection_whose_ring_is_broken(tmp_path: Path) -> None:
    """It ends for both sides; the guest's others go on."""
    with (
        mortal(tmp_path) as backend,
        guest(backend, "tester") as front,
        socket.create_server((HOST, 0)) as listener,
    ):
        _, broken, _ = front.connect(listener.getsockname())
        lost, _ = listener.accept()
        _, stream, _ = front.connect(listener.getsockname())
        far, _ = listener.accept()
        at = indexes.RING_ORDER
        broken.page[at : at + 4] = (99).to_bytes(4, "little")
        backend.kill()
        with lost, far:
            with pytest.raises(ConnectionResetError):
                broken.recv()
            lost.settimeout(20)
            with pytest.raises(ConnectionResetError):
                lost.recv(1)
            stream.send(b"there")
            assert far.recv(10) == b"there"


def test_connections_that_a_listener_had_taken(tmp_path: Path) -> None:
    """They wait for an ACCEPT, known to nobody but the dead backend: each is its own listener's."""
    rules = (
        tmp_path / "policy.toml"
    )  # by which a client is judged, and taken from the kernel's queue for that
    rules.write_text(f'[[rule]]\n{ANYTHING}[[rule]]\nallow = ["accept:127.0.0.0/8"]\n')
    with (
        mortal(tmp_path, "--policy", str(rules)) as backend,
        guest(backend, "one") as one,
        guest(backend, "two") as two,
        contextlib.ExitStack() as clients,
    ):
        with socket.create_server((HOST, 0)) as probe:
            port: int = probe.getsockname()[1]
        waiting = []
        for front, host in ((one, HOST), (two, "127.0.0.2")):
            listener = front.listener(host, port)
            poll = front.submit(requests.Poll(listener))
            client = clients.enter_context(socket.create_connection((host, port), 20))
            client.sendall(host.encode())
            assert front.result(poll).ret == 0
            waiting.append((front, listener, host))
        backend.kill()
        for front, listener, host in waiting:
            cookie, _, stream = front.accept(listener)
            assert front.result(cookie).ret == 0
            assert stream.recv_exactly(len(host)) == host.encode()
