"""Requests that another backend had received: answered once more, and on record."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

import pytest

from backkit import Front, Serving, front, sockaddr, until
from xensock.wire import requests
from xensock.wire.commands import encode_request
from xensock.wire.errors import to_wire
from xensock.wire.extensions import ALL
from xensock.wire.responses import Response

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.calls.record import Record


@pytest.fixture
def guest(serving: Serving) -> Iterator[Front]:
    with front(serving, ALL) as made:
        yield made


def again(serving: Serving, request: requests.Request, cookie: int) -> Response:
    """The answer to a request that is repeated."""
    (session,) = serving.backend.sessions.values()
    found = session.guest
    assert found is not None
    answers: list[bytes] = []

    def repeat() -> None:
        respond = found.respond
        found.respond = lambda slot, sequence: answers.append(slot)
        found.serve(encode_request(cookie, request), 0, True)
        found.respond = respond

    serving.call(repeat)
    (answer,) = answers
    return Response.decode(answer)


def of(serving: Serving, verb: str) -> list[Record]:
    return [record for record in serving.records if record.verb == verb]


def test_a_connect_that_was_made_is_recorded(serving: Serving, guest: Front) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        id, stream = guest.socket(), guest.stream()
        where = [sockaddr(*each.getsockname()) for each in (first, second)]
        made, other = (requests.Connect(id, at, 0, stream.ref, stream.port) for at in where)
        cookie = guest.submit(made)
        assert guest.result(cookie).ret == 0
        assert again(serving, made, cookie).ret == 0
        records = [
            (record.target, record.decision, record.error) for record in of(serving, "connect")
        ]
        name = f"127.0.0.1:{first.getsockname()[1]}"
        assert records == [(name, "allow", 0)] * 2
        # Another one is none that was made, whatever it names.
        assert again(serving, other, 1000).ret == to_wire(errno.EISCONN)
        assert len(of(serving, "connect")) == 2


def test_an_accept_that_was_made_is_recorded(serving: Serving, guest: Front) -> None:
    listener = guest.listener()
    (session,) = serving.backend.sessions.values()
    assert session.guest is not None
    port = session.guest.held(listener).host.getsockname()[1]
    stream, id = guest.stream(), guest.new_id()
    request = requests.Accept(listener, id, stream.ref, stream.port)
    cookie = guest.submit(request)
    with socket.create_connection(("127.0.0.1", port)) as client:
        before = guest.result(cookie)
        name = sockaddr(*client.getsockname())
        assert before.ret == 0
        after = again(serving, request, cookie)
        assert after.encode() == before.encode()
        assert name in after.encode()
        own = f"127.0.0.1:{client.getsockname()[1]}"
    until(lambda: len(of(serving, "accept")) == 2)
    assert {record.target for record in of(serving, "accept")} == {own}
    # A socket that is there already, of whatever kind, was not accepted by it.
    taken = requests.Accept(listener, guest.socket(), stream.ref, stream.port)
    assert again(serving, taken, 1000).ret == to_wire(errno.EEXIST)
    taken = requests.Accept(listener, listener, stream.ref, stream.port)
    assert again(serving, taken, 1001).ret == to_wire(errno.EEXIST)
