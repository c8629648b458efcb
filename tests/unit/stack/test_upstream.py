"""Another backend as a stack: what it decided is known with what its sockets did."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from backkit import until
from daemonkit import daemon
from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol
from xensock.client.link import Link
from xensock.pvcalls.frontend import Frontend
from xensock.stack.resolver_wire import NXDOMAIN, rcode
from xensock.stack.stacks import DecidedError, ExplainedAnswer, Look, decided
from xensock.stack.upstream import THREADS, Carried, UnreachableError, Upstream
from xensock.transport.url import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from daemonkit import Daemon

DENIED = "198.51.100.0/24"
RULES = ("--allow=loopback", "--allow=any", f"--deny={DENIED}", "--deny=bad.test")
REFUSED = Decision(False, DENIED, errno.EACCES, None, False, f"remove --deny {DENIED}")
QUESTION = b"\7\7\1\0\0\1\0\0\0\0\0\0\3bad\4test\0\0\1\0\1"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, *RULES) as made:
        yield made


@pytest.fixture(params=[True, False], ids=["recording", "not recording"])
def upstream(served: Daemon, request: pytest.FixtureRequest) -> Iterator[Upstream]:
    with closing(Upstream("vpn", served.url, "guest", request.param)) as made:
        yield made


def test_a_refusal_is_explained(upstream: Upstream) -> None:
    with upstream.make(socket.AF_INET, socket.SOCK_STREAM, 0) as sock:
        assert sock.connect_ex(("198.51.100.7", 80)) == errno.EACCES
        assert decided(sock) == REFUSED
    assert decided(sock) == REFUSED, "it is asked for after the end too"


def test_what_is_allowed_is_explained_to_who_records(upstream: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with upstream.make(socket.AF_INET, socket.SOCK_STREAM, 0) as sock:
            sock.setblocking(True)
            assert sock.connect_ex(server.getsockname()) == 0
            found = decided(sock)
            assert found is not None
            assert (found.allowed, found.rule) == (True, "loopback")
        server.accept()[0].close()
    with upstream.make(socket.AF_INET, socket.SOCK_STREAM, 0) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        found = decided(sock)
        assert (found and found.rule) == (
            "default: ports from 1024" if upstream.recording else None
        )


def test_ports_that_are_refused(upstream: Upstream) -> None:
    hint = "--allow listen:any:80"
    refused = Decision(False, "default: ports below 1024", errno.EACCES, None, False, hint)
    with (
        upstream.make(socket.AF_INET, socket.SOCK_STREAM, 0) as sock,
        pytest.raises(DecidedError) as caught,
    ):
        sock.bind(("0.0.0.0", 80))
    assert caught.value.decision == refused
    with pytest.raises(DecidedError) as caught:
        upstream.create_server("0.0.0.0", 80, socket.AF_INET, False)
    assert caught.value.errno == errno.EACCES


def test_a_port_that_is_taken(upstream: Upstream) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        upstream.make(socket.AF_INET, socket.SOCK_STREAM, 0) as sock,
    ):
        with pytest.raises(OSError, match="in use") as caught:
            sock.bind(server.getsockname())
        assert isinstance(caught.value, DecidedError) == upstream.recording


def test_the_guests_own_listener_at_the_loopback_is_left_to_its_network(upstream: Upstream) -> None:
    with (
        upstream.create_server("0.0.0.0", 0, socket.AF_INET, False) as server,
        upstream.make(socket.AF_INET, socket.SOCK_STREAM, 0) as sock,
    ):
        port = server.getsockname()[1]
        assert sock.connect_ex(("127.0.0.1", port)) == errno.EACCES
        server.accept()[0].close()  # it was made all the same


def test_who_must_not_wait_closes_while_the_backend_hangs(served: Daemon) -> None:
    with (
        closing(Upstream("vpn", served.url, "guest")) as upstream,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        near, far = [upstream.make_aside(socket.AF_INET) for _ in range(2)], list[socket.socket]()
        for each in near:
            each.setblocking(True)
            assert each.connect_ex(server.getsockname()) == 0
            far.append(server.accept()[0])

        def close() -> None:
            near[0].reset()
            near[1].close()

        served.process.send_signal(signal.SIGSTOP)
        try:
            closing_both = threading.Thread(target=close)
            closing_both.start()
            closing_both.join(20)
            assert not closing_both.is_alive()
        finally:
            served.process.send_signal(signal.SIGCONT)
        for each in far:
            each.settimeout(20)
        with far[0], pytest.raises(ConnectionResetError):
            far[0].recv(1)
        with far[1]:
            assert far[1].recv(1) == b""


def test_leaving_waits_for_nobody_who_hears_of_it(served: Daemon) -> None:
    """Who hears what a call came to may need a lock that another one holds, who asks for something by those threads."""
    upstream = Upstream("vpn", served.url, "guest", False)
    go, lock, said = threading.Event(), threading.Lock(), list[object]()

    def hear(word: Future[int]) -> None:
        with lock:
            said.append("cancelled" if word.cancelled() else word.result())

    threads = upstream.threads(0)
    for _ in range(THREADS):
        threads.submit(go.wait)
    waiting = threads.submit(lambda: 1)
    waiting.add_done_callback(hear)
    with lock:
        leaving = threading.Thread(target=upstream.close, daemon=True)
        leaving.start()
        leaving.join(10)
        ended = not leaving.is_alive()
    go.set()
    assert ended
    with pytest.raises(RuntimeError):
        threads.submit(go.wait)
    until(lambda: said == [1])


def test_names_are_explained(upstream: Upstream) -> None:
    answer = asyncio.run(upstream.query(QUESTION))
    assert isinstance(answer, ExplainedAnswer)
    assert (answer[:2], rcode(answer)) == (b"\7\7", NXDOMAIN)
    assert answer.decision == Decision(False, "bad.test", 0, None, False, "remove --deny bad.test")


def test_a_look_sends_nothing_and_says_what_was_decided(upstream: Upstream) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        end = Endpoint.from_python(server.getsockname())
        for _ in range(2):
            found = upstream.look(Protocol.UDP, end)
            assert (found.error, str(found.own and found.own.host)) == (0, "127.0.0.1")
            refused = upstream.look(Protocol.UDP, Endpoint.from_python(("198.51.100.7", 9)))
            assert (refused.error, refused.own, refused.decision) == (errno.EACCES, None, REFUSED)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.recv(1)


def test_looks_do_not_wait_for_each_other(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is answered late, as by a backend behind the backend, holds up no other."""
    late, one = threading.Event(), Endpoint.from_python(("127.0.0.1", 9))
    looked = Carried.look

    def look(self: Carried, end: Endpoint) -> Look:
        if end == one:
            late.wait(20)
        return looked(self, end)

    monkeypatch.setattr(Carried, "look", look)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(upstream.look, Protocol.UDP, one)
        try:
            for _ in range(3):
                end = Endpoint.from_python(("127.0.0.1", 10))
                assert upstream.look(Protocol.UDP, end).error == 0
            assert not waiting.done()
        finally:
            late.set()
        assert waiting.result(20).error == 0


def test_a_look_at_a_backend_that_is_gone(served: Daemon, upstream: Upstream) -> None:
    end = Endpoint.from_python(("127.0.0.1", 9))
    assert upstream.look(Protocol.UDP, end).error == 0
    served.process.kill()
    assert until(lambda: upstream.look(Protocol.UDP, end).error == errno.ENETDOWN)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError) as caught:
        Upstream("vpn", f"local:{tmp_path}/none", "guest")
    assert (caught.value.backend, caught.value.errno) == ("vpn", errno.ENOENT)


def test_who_may_ping_is_the_backends_word(upstream: Upstream) -> None:
    native = True
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
    except PermissionError:
        native = False
    assert upstream.may_ping() == native
    upstream.close()
    assert not upstream.may_ping()


@pytest.fixture
def version_1(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    """As at Linux's backend: none of the extensions is agreed upon."""

    def open_link(url: str, name: str, order: int, splices: bool) -> Link:
        front = Frontend(connect(url, name=name), wanted=frozenset(), ring_page_order=0)
        return Link(front, order, splices)

    monkeypatch.setattr("xensock.stack.upstream.open_link", open_link)
    with closing(Upstream("old", served.url, "guest")) as made:
        yield made


def test_a_listener_at_a_backend_without_options(version_1: Upstream) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with version_1.create_server("127.0.0.1", port, socket.AF_INET, False) as server:
        socket.create_connection(("127.0.0.1", port), 20).close()
        server.settimeout(20)
        server.accept()[0].close()


def test_the_guests_end_reaches_the_peer_of_a_backend_without_half_close(
    version_1: Upstream,
) -> None:
    """All that was sent comes first; who ended one direction alone is told by a reset."""
    size = 4 << 20
    with socket.create_server(("127.0.0.1", 0)) as door:
        near = socket.create_connection(door.getsockname(), 20)
        far, _ = door.accept()
    ended: list[tuple[int, int, int]] = []
    with socket.create_server(("127.0.0.1", 0)) as listener, near:
        made = version_1.make_passed(socket.AF_INET)
        assert made.connect_ex(listener.getsockname()) == 0
        server, _ = listener.accept()
        made.splice(far, lambda *how: ended.append(how))
        server.settimeout(20)
        with server, ThreadPoolExecutor(1) as sender:
            sent = sender.submit(lambda: (near.sendall(bytes(size)), near.shutdown(socket.SHUT_WR)))
            got = 0
            while part := server.recv(1 << 18):
                got += len(part)
            sent.result()
            assert got == size
        with pytest.raises(ConnectionResetError):
            near.recv(1)
    assert until(lambda: bool(ended), 20)
    assert ended[0][0] == size
