"""Own sockets over time: idle ones, many threads, children, and a backend that dies."""

from __future__ import annotations

import errno
import os
import resource
import select
import socket as standard
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from daemonkit import daemon
from xensock.client import attachment, making, sockets
from xensock.client.held import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from daemonkit import Daemon
    from xensock.client.link import Link

HOST = "127.0.0.1"
PATIENCE_S = 20
RULES = ("--allow=loopback", "--allow=listen:any")
IDLE = 1000
DESCRIPTORS = 16 * IDLE


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[tuple[Daemon, Link]]:
    """A backend that a test may kill, and a link to it."""
    with daemon(tmp_path, *RULES) as backend:
        link = attachment.open_link(backend.url, "mortal")
        try:
            yield backend, link
        finally:
            link.close()


def spent(pid: int) -> float:
    """Seconds of processor time that all threads of a process have had (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.alone
def test_idle_sockets_cost_no_cpu(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < DESCRIPTORS:
        pytest.skip(f"{DESCRIPTORS} descriptors are too many for this user")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        backends = []
        for number in range(4):  # each gives one guest a share of its descriptors
            directory = tmp_path / str(number)
            directory.mkdir()
            backends.append(stack.enter_context(daemon(directory, *RULES)))
        links = [attachment.open_link(each.url, "idle") for each in backends]
        for link in links:
            stack.callback(link.close)
        server = stack.enter_context(standard.create_server((HOST, 0), backlog=128))
        for number in range(IDLE):
            client = stack.enter_context(sockets.socket(link=links[number % len(links)]))
            client.connect(server.getsockname())
            stack.enter_context(server.accept()[0])
        time.sleep(0.2)  # the last connections settle

        def cpu() -> float:
            return time.process_time() + sum(spent(each.process.pid) for each in backends)

        before, clock = cpu(), time.monotonic()
        time.sleep(1)
        assert (cpu() - before) / (
            time.monotonic() - clock
        ) < 0.05  # the kernel counts backends' in 0.01 s


def test_a_backend_that_dies_fails_every_socket(mortal: tuple[Daemon, Link]) -> None:
    backend, link = mortal

    def own(kind: int = standard.SOCK_STREAM) -> Any:
        return sockets.socket(standard.AF_INET, kind, link=link)

    with (
        own() as listener,
        own() as client,
        own() as fresh,
        own(standard.SOCK_DGRAM) as datagrams,
        standard.create_server((HOST, 0)) as server,
    ):
        listener.bind((HOST, 0))
        listener.listen()
        client.connect(server.getsockname())
        datagrams.bind((HOST, 0))
        waiting: list[Callable[[], Any]] = [
            lambda: listener.accept(),
            lambda: client.recv(1),
            lambda: datagrams.recv(1),
        ]
        with ThreadPoolExecutor(len(waiting)) as pool:
            futures = [pool.submit(call) for call in waiting]
            time.sleep(0.1)
            backend.process.kill()
            for future in futures:
                assert isinstance(future.exception(PATIENCE_S), OSError)
        for call in (
            lambda: client.sendall(b"x" * 10),
            lambda: client.getsockopt(standard.IPPROTO_TCP, standard.TCP_NODELAY),
            lambda: fresh.connect(server.getsockname()),
            lambda: listener.accept(),
            lambda: datagrams.sendto(b"x", (HOST, 9)),
            lambda: own(),
        ):
            with pytest.raises(OSError, match="Errno"):
                call()
        poll = select.poll()
        poll.register(client, select.POLLIN)
        assert poll.poll(PATIENCE_S * 1000)


def test_a_connect_under_way_fails_with_the_backend(mortal: tuple[Daemon, Link]) -> None:
    backend, link = mortal
    with (
        standard.socket() as full,
        sockets.socket(link=link) as client,
        ExitStack() as stack,
        ThreadPoolExecutor(1) as pool,
    ):
        full.bind((HOST, 0))
        full.listen(0)
        for _ in range(3):  # its queue is full: SYNs are dropped
            filler = stack.enter_context(standard.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        time.sleep(0.1)
        future = pool.submit(client.connect, full.getsockname())
        time.sleep(0.2)
        assert not future.done()
        backend.process.kill()
        assert isinstance(future.exception(PATIENCE_S), OSError)


def test_sockets_of_a_link_that_is_closed(mortal: tuple[Daemon, Link]) -> None:
    _, link = mortal
    with standard.create_server((HOST, 0)) as server, sockets.socket(link=link) as client:
        client.connect(server.getsockname())
        link.close()
        with pytest.raises(OSError, match="Errno"):
            client.recv(1)
        with pytest.raises(OSError, match="Errno"):
            sockets.socket(link=link)


def test_many_threads(attached: str) -> None:
    def ask(data: bytes) -> bool:
        with sockets.socket() as client:
            client.connect(address)
            client.sendall(data)
            client.shutdown(standard.SHUT_WR)
            back = bytearray()
            while part := client.recv(1 << 16):
                back += part
            return bytes(back) == data

    def serve() -> None:
        def echo(sock: Any) -> None:
            with sock:
                while part := sock.recv(1 << 16):
                    sock.sendall(part)

        with ThreadPoolExecutor(16) as pool:
            for _ in range(200):
                pool.submit(echo, listener.accept()[0])

    with sockets.socket() as listener:
        listener.bind((HOST, 0))
        listener.listen(64)
        address = listener.getsockname()
        server = threading.Thread(target=serve)
        server.start()
        with ThreadPoolExecutor(16) as pool:
            assert all(pool.map(ask, [os.urandom(10_000) for _ in range(200)]))
        server.join()


def test_a_child_accepts_and_moves_bytes(attached: str) -> None:
    with sockets.socket() as listener, sockets.socket() as client:
        listener.bind((HOST, 0))
        listener.listen()
        address = listener.getsockname()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                plain = standard.socket(fileno=os.dup(listener.fileno()))
                fd, _ = plain._accept()  # type: ignore[attr-defined]
                os.write(fd, os.read(fd, 100)[::-1])
                status = 0
            finally:
                os._exit(status)
        client.connect(address)
        client.sendall(b"abc")
        assert client.recv(100) == b"cba"
        assert os.waitpid(child, 0)[1] == 0
        assert client.recv(1) == b""


def test_a_child_cannot_ask(attached: str) -> None:
    with sockets.socket() as sock:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                sock.bind((HOST, 0))
            except OSError as error:
                status = 0 if error.errno == errno.EOPNOTSUPP else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        sock.bind((HOST, 0))


def test_a_descriptor_that_another_process_gets(attached: str) -> None:
    ours, theirs = standard.socketpair()
    with ours, theirs, standard.create_server((HOST, 0)) as server, sockets.socket() as client:
        client.connect(server.getsockname())
        far, _ = server.accept()
        with far:
            standard.send_fds(ours, [b"x"], [client.fileno()])
            client.close()
            _, fds, _, _ = standard.recv_fds(theirs, 1, 1)
            os.write(fds[0], b"by another descriptor")
            assert far.recv(100) == b"by another descriptor"
            os.close(fds[0])
            assert far.recv(1) == b""


def test_a_socket_is_shown_without_asking_anybody(
    mortal: tuple[Daemon, Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collected socket is shown in its warning, on whatever thread and under whatever lock that happens."""
    _, link = mortal

    def refused(request: object) -> None:
        raise AssertionError(f"{request} was asked")

    with standard.create_server((HOST, 0)) as server, sockets.socket(link=link) as client:
        client.connect(server.getsockname())
        own, peer = client.getsockname(), client.getpeername()
        with sockets.socket(link=link) as fresh, monkeypatch.context() as patch:
            patch.setattr(link.frontend, "submit", refused)
            assert f"laddr={own}, raddr={peer}>" in repr(client)
            assert repr(fresh).endswith("proto=0>")
        assert "[closed]" in repr(fresh)
    assert "[closed]" in repr(client)
    assert "addr" not in repr(client)  # it has given its names back


def test_a_connection_that_was_never_spliced_ends_with_its_socket(
    mortal: tuple[Daemon, Link],
) -> None:
    """The guest's own socket may be gone before its connection's bytes could flow (the relay)."""
    link = attachment.open_link(mortal[0].url, "splices", splices=True)
    try:
        with making.create_server((HOST, 0), link=link) as listener:
            listener.settimeout(PATIENCE_S)
            for end in (ConnectionResetError, b""):
                with standard.create_connection(listener.getsockname(), PATIENCE_S) as peer:
                    accepted, _ = listener.accept()
                    if end is ConnectionResetError:
                        reset = struct.pack("ii", 1, 0)
                        accepted.setsockopt(standard.SOL_SOCKET, standard.SO_LINGER, reset)
                    accepted.close()
                    try:
                        seen: object = peer.recv(1)
                    except OSError as error:
                        seen = type(error)
                    assert seen == end
    finally:
        link.close()


def test_a_close_that_another_thread_is_at_is_waited_for(
    attached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who serves the sockets may be first to hear of a hang-up; the port is free when close(2) returns all the same."""
    go_on = threading.Event()
    with sockets.socket() as sock:
        sock.bind((HOST, 0))
        address = sock.getsockname()
        held = sock._held
        closing = held._closing

        def slowly() -> Any:
            assert go_on.wait(PATIENCE_S)
            return closing()

        monkeypatch.setattr(held, "_closing", slowly)
        first = threading.Thread(target=held.release)
        first.start()
        while held.state is not State.ENDED:
            time.sleep(0.001)
        second = threading.Thread(target=sock.close)
        second.start()
        second.join(0.1)
        assert second.is_alive()
        go_on.set()
        second.join(PATIENCE_S)
        first.join(PATIENCE_S)
    with sockets.socket() as sock:
        sock.bind(address)
