"""Connections over the relay whose first bytes must name a host, or whose bytes are counted out."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from relaykit import Ground, read, until
from test_firstbytes import HELLO, MESSAGE, hello, records

import nskit
from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Limit
from xensock.policy.grants import Grant, Grants
from xensock.supervisor.relay import Terms
from xensock.supervisor.verifying import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(bool(nskit.missing()), reason=nskit.missing())


@pytest.fixture
def ground() -> Iterator[Ground]:
    made = Ground()
    yield made
    made.close()


class Watched:
    """Terms that ask for web.test, and what was told."""

    def __init__(self, protocol: str = "sni") -> None:
        self.why: list[str] = []
        self.ends: list[tuple[int, int, int]] = []
        check = Check(protocol, lambda host: host == "web.test", self.why.append)  # type: ignore[arg-type]
        self.terms = Terms(lambda *end: self.ends.append(end), check)

    def connect(self, ground: Ground) -> tuple[socket.socket, socket.socket]:
        with ground.server() as server:
            guest = ground.client()
            assert ground.connect(guest, server, ended=self.terms) == 0
            far, _ = server.accept()
        guest.settimeout(10)
        far.settimeout(10)
        return guest, far


def reset(sock: socket.socket) -> bool:
    """Whether the stream ends by a reset, without a byte."""
    try:
        return sock.recv(1) != b"" and False
    except ConnectionResetError:
        return True


def test_the_right_name_passes_and_every_byte_arrives(ground: Ground) -> None:
    watched = Watched()
    guest, far = watched.connect(ground)
    with guest, far:
        until(lambda: ground.relay.connections() == 1)
        pieces = records(MESSAGE, 50)
        for at in range(0, len(pieces), 41):
            guest.send(pieces[at : at + 41])
            far.setblocking(False)
            if at + 41 < len(pieces):
                with pytest.raises(BlockingIOError):
                    far.recv(1)
        far.settimeout(10)
        guest.sendall(b"more")
        assert read(far, len(pieces) + 4) == pieces + b"more"
        far.sendall(b"answer")
        assert read(guest, 6) == b"answer"
    until(lambda: len(watched.ends) == 1)
    assert watched.ends == [(len(pieces) + 4, 6, 0)]
    assert watched.why == []


@pytest.mark.parametrize(
    ("protocol", "data", "why"),
    [
        ("sni", hello("evil.test"), "they name evil.test"),
        ("sni", b"SSH-2.0-x\r\n", "they are not TLS"),
        ("host", b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n", "they name evil.test"),
        ("host", HELLO, "they are no HTTP/1 request"),
    ],
)
def test_another_name_is_reset_before_a_byte_leaves(
    ground: Ground, protocol: str, data: bytes, why: str
) -> None:
    watched = Watched(protocol)
    guest, far = watched.connect(ground)
    with guest, far:
        guest.sendall(data)
        assert reset(guest)
        assert reset(far)
    until(lambda: bool(watched.why))
    assert watched.why == [why]
    until(lambda: watched.ends == [(0, 0, errno.ECONNRESET)])
    assert ground.relay.connections() == 0


def test_a_request_passes(ground: Ground) -> None:
    guest, far = Watched("host").connect(ground)
    with guest, far:
        request = b"POST /x HTTP/1.1\r\nHost: WEB.test:80\r\nContent-Length: 4\r\n\r\nbody"
        for at in range(0, len(request), 7):
            guest.send(request[at : at + 7])
        assert read(far, len(request)) == request
        guest.shutdown(socket.SHUT_WR)
        assert far.recv(1) == b""


def test_a_stream_that_ends_before_it_names_a_host(ground: Ground) -> None:
    watched = Watched()
    guest, far = watched.connect(ground)
    with guest, far:
        guest.sendall(HELLO[:-1])
        guest.shutdown(socket.SHUT_WR)
        assert reset(far)
    until(lambda: watched.why == ["they end before they name a host"])


def test_a_connection_without_a_byte_just_ends(ground: Ground) -> None:
    watched = Watched()
    guest, far = watched.connect(ground)
    with far:
        guest.close()
        assert far.recv(1) == b""
    until(lambda: watched.ends == [(0, 0, 0)])
    assert watched.why == []


def test_a_far_side_that_goes_meanwhile(ground: Ground) -> None:
    watched = Watched()
    guest, far = watched.connect(ground)
    with guest:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        assert reset(guest)
    until(lambda: watched.ends == [(0, 0, errno.ECONNRESET)])


def test_urgent_data_names_nobody(ground: Ground) -> None:
    """An urgent byte within the ClientHello: what is before it is too little, and so is the whole stream's rest."""
    watched = Watched()
    guest, far = watched.connect(ground)
    with guest, far:
        guest.send(HELLO[:40])
        guest.send(b"!", socket.MSG_OOB)
        guest.send(HELLO[40:])
        guest.shutdown(socket.SHUT_WR)
        assert reset(far)
    until(lambda: len(watched.ends) == 1)
    assert len(watched.why) == 1


def test_silence_is_reset_in_time(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground.relay._verifier, "_patience", 0.2)
    watched = Watched()
    guest, far = watched.connect(ground)
    with guest, far:
        far.sendall(b"220 hello\r\n")  # who waits for the server to speak first waits in vain
        guest.send(HELLO[:10])
        assert reset(guest)
        assert reset(far)
    until(lambda: watched.why == ["they did not come within 0.2 seconds"])


def test_too_much_that_names_nobody(ground: Ground) -> None:
    watched = Watched("host")
    guest, far = watched.connect(ground)
    with guest, far:

        def feed() -> None:
            head = b"GET / HTTP/1.1\r\nCookie: "
            with contextlib.suppress(OSError):
                guest.sendall(head + b"x" * (1 << 20))

        feeder = threading.Thread(target=feed)
        feeder.start()
        assert reset(far)
        feeder.join()
    until(lambda: watched.why == ["the request's head is too long"])


def test_closing_resets_what_is_held() -> None:
    ground = Ground()
    watched = Watched()
    try:
        guest, far = watched.connect(ground)
        with guest, far:
            until(lambda: ground.relay._verifier.live() == 1)
            ground.relay.close()
            assert reset(guest)
            assert reset(far)
        until(lambda: watched.ends == [(0, 0, errno.ECONNRESET)])
    finally:
        ground.close()


def granted(grants: Grants, rule: str, **limit: int) -> Terms:
    grant = grants.take(Decision(True, rule, limit=Limit(**limit)))
    assert isinstance(grant, Grant)
    return Terms(grant=grant)


@pytest.mark.parametrize("direction", ["out", "in"])
def test_bytes_come_as_fast_as_their_rules_grant(ground: Ground, direction: str) -> None:
    """Two connections share what one rule grants; another rule grants four times as much, and gets it meanwhile."""
    grants = Grants()
    terms = [granted(grants, "slow.test", rate=200_000) for _ in range(2)]
    terms.append(granted(grants, "fast.test", rate=800_000))
    counts = [0, 0, 0]
    done = threading.Event()
    threads = []
    socks: list[socket.socket] = []
    for number, each in enumerate(terms):
        with ground.server() as server:
            guest = ground.client()
            assert ground.connect(guest, server, ended=each) == 0
            far, _ = server.accept()
        socks += [guest, far]
        sender, receiver = (guest, far) if direction == "out" else (far, guest)
        receiver.settimeout(10)

        def feed(sender: socket.socket = sender) -> None:
            try:
                while not done.is_set():
                    sender.sendall(bytes(1 << 14))
            except OSError:
                pass

        def drain(receiver: socket.socket = receiver, number: int = number) -> None:
            try:
                while not done.is_set():
                    counts[number] += len(receiver.recv(1 << 16))
            except OSError:
                pass

        threads += [threading.Thread(target=feed), threading.Thread(target=drain)]
    for thread in threads:
        thread.start()
    until(lambda: counts[2] >= 1_200_000, 60)
    slow, fast = counts[0] + counts[1], counts[2]
    done.set()
    for sock in socks:
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()
    for thread in threads:
        thread.join()
    assert 2.5 < fast / slow < 6.5, counts
    assert min(counts[:2]) > 0


def test_a_share_is_given_back_at_the_end_and_when_nobody_answers(ground: Ground) -> None:
    grants = Grants()
    rule = Decision(True, "web.test", limit=Limit(concurrent=1))

    def free() -> bool:
        found = grants.take(rule)
        if isinstance(found, Grant):
            found.release()
            return True
        return False

    with ground.server() as server, ground.client() as guest:
        assert ground.connect(guest, server, ended=granted(grants, "web.test", concurrent=1)) == 0
        far, _ = server.accept()
        assert not free()
        far.close()
        guest.close()
        until(free)
    with ground.server() as other, ground.client(blocking=False) as guest:
        port = other.getsockname()
        other.close()
        with guest.dup() as copy:
            terms = granted(grants, "web.test", concurrent=1)
            ground.relay.connect(copy, Endpoint.from_python(port), ended=terms)
            del terms
        until(free)
