"""Options of a socket."""

from __future__ import annotations

import errno
import socket

from backkit import Serving, free_port, front, sockaddr, until
from xensock.wire import requests
from xensock.wire.commands import encode_request
from xensock.wire.extensions import ALL
from xensock.wire.responses import Response


def test_an_error_is_noted_as_read_once_it_was_told() -> None:
    """Whoever is killed in between tells it twice rather than never."""
    with Serving() as serving, front(serving, ALL) as made:
        (session,) = serving.backend.sessions.values()
        guest = session.guest
        assert guest is not None
        id, stream = made.socket(), made.stream()
        where = sockaddr("127.0.0.1", free_port())
        made.command(
            requests.Connect(id, where, requests.ConnectFlag.ASYNC, stream.ref, stream.port)
        )
        held = guest.held(id)
        until(lambda: held.error == errno.ECONNREFUSED)
        steps: list[tuple[str, int]] = []

        def ask() -> None:
            guest.respond = lambda slot, sequence: steps.append(
                ("told", int.from_bytes(Response.decode(slot).value[:4], "little"))
            )
            guest.keep = lambda held: steps.append(("noted", held.error))
            for cookie in (1000, 1001):
                request = requests.GetOption(id, socket.SOL_SOCKET, socket.SO_ERROR, 4, 0)
                guest.serve(encode_request(cookie, request))

        serving.call(ask)
        assert steps == [("told", errno.ECONNREFUSED), ("noted", 0), ("told", 0)]
