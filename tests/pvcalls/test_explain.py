"""Extension explain: why a backend allowed or refused what a guest asked for."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from backkit import Front, NoNames, Serving, free_port, front, sockaddr
from xensock.calls.call import Decision
from xensock.wire.errors import ENOTSUP
from xensock.wire.explanations import Explanation
from xensock.wire.extensions import ALL, Extension
from xensock.wire.frames import Frame, decode_frame
from xensock.wire.requests import Attach, Bind, Connect, Explain, Listen, Socket

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY = ALL - {Extension.SHARED_RINGS}
DENIED = "198.51.100.0/24"


class Names(NoNames):
    """A long answer for everybody but who asks for nothing good."""

    async def explained(
        self, message: bytes, server: object, *, datagram: bool
    ) -> tuple[bytes, Decision] | None:
        if message == b"bad":
            return b"no", Decision(False, "bad.test", hint="remove --deny bad.test")
        return message * (100 if datagram else 1000), Decision(True, "default: names resolve")


@pytest.fixture
def serving() -> Iterator[Serving]:
    rules = ("loopback", "any", "listen:any:8000-65535")
    with Serving(rules, deny=(DENIED,), names=lambda guest: Names()) as made:
        yield made


@pytest.fixture
def guest(serving: Serving) -> Iterator[Front]:
    with front(serving, EVERY) as made:
        yield made


def why(guest: Front, id: int) -> Explanation:
    pages = guest.session.allocate(1)
    response = guest.command(Explain(id, pages.refs[0]))
    assert response.ret == 0
    found, behind = Explanation.decode(bytes(pages.memory[: response.length]))
    assert not behind
    return found


def test_a_refused_connect(guest: Front) -> None:
    id = guest.socket()
    stream = guest.stream()
    request = Connect(id, sockaddr("198.51.100.7", 80), 0, stream.ref, stream.port)
    assert guest.ret(request) == -errno.EACCES
    hint = f"remove --deny {DENIED}"
    assert why(guest, id) == Explanation(False, False, -errno.EACCES, DENIED, hint)


def test_an_allowed_connect_that_fails(guest: Front) -> None:
    id = guest.socket()
    stream = guest.stream()
    request = Connect(id, sockaddr("127.0.0.1", free_port()), 0, stream.ref, stream.port)
    assert guest.ret(request) == -errno.ECONNREFUSED
    assert why(guest, id) == Explanation(True, rule="loopback")


def test_bind_and_listen(guest: Front) -> None:
    id, port = guest.socket(), free_port()
    assert guest.ret(Bind(id, sockaddr("0.0.0.0", 80))) == -errno.EACCES
    hint = "--allow listen:any:80"
    rule = "default: not in --allow listen:"
    assert why(guest, id) == Explanation(False, False, -errno.EACCES, rule, hint)
    assert guest.ret(Bind(id, sockaddr("127.0.0.1", port))) == 0
    assert guest.ret(Listen(id, 1)) == 0
    assert why(guest, id) == Explanation(True, rule="listen:any:8000-65535")


def test_the_guest_meets_itself(guest: Front) -> None:
    listener, port = guest.socket(), free_port()
    assert guest.ret(Bind(listener, sockaddr("127.0.0.1", port))) == 0
    assert guest.ret(Listen(listener, 1)) == 0
    id, stream = guest.socket(), guest.stream()
    guest.command(Connect(id, sockaddr("127.0.0.1", port), 1, stream.ref, stream.port))
    found = why(guest, id)
    assert found.allowed
    assert found.own


def test_nothing_was_decided(guest: Front) -> None:
    id = guest.socket()
    assert guest.ret(Explain(id, 1)) == -errno.ENODATA
    assert guest.ret(Explain(999, 1)) == -errno.EBADF


def test_a_page_that_is_none(guest: Front) -> None:
    id = guest.socket()
    assert guest.ret(Bind(id, sockaddr("127.0.0.1", 0))) == 0
    assert guest.ret(Explain(id, 0x7FFFFFFF)) == -errno.EINVAL


def test_only_for_who_asked_for_it(serving: Serving) -> None:
    with front(serving, EVERY - {Extension.EXPLAIN}) as guest:
        assert guest.ret(Explain(guest.socket(), 1)) == ENOTSUP


@pytest.mark.parametrize("explained", [True, False])
def test_answers_to_names(serving: Serving, explained: bool) -> None:
    wanted = EVERY if explained else EVERY - {Extension.EXPLAIN}
    with front(serving, wanted) as guest:
        id, stream = guest.new_id(), guest.stream(6)
        assert guest.ret(Socket(id, 0, socket.SOCK_DGRAM, 53)) == 0
        assert guest.ret(Attach(id, stream.ref, stream.port)) == 0

        def ask(message: bytes) -> bytes:
            stream.send(Frame(message).encode())
            while stream.ring.readable < 40:
                stream.wait(stream.ring.arm_read)
            return decode_frame(stream.ring.read(1 << 16)[0])[0].payload

        long, refused = ask(b"good"), ask(b"bad")
        if explained:
            found, long = Explanation.decode(long)
            assert found == Explanation(True, rule="default: names resolve")
            found, refused = Explanation.decode(refused)
            hint = "remove --deny bad.test"
            assert found == Explanation(False, rule="bad.test", hint=hint)
        assert long == b"good" * 1000, "UDP's limit does not hold here"
        assert refused == b"no"
