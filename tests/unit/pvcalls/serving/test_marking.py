"""Which listener a connection came from."""

from __future__ import annotations

import socket

import pytest

from xensock.pvcalls.serving.counting import cookie
from xensock.pvcalls.serving.marking import mark, origin


@pytest.mark.parametrize(
    ("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_connections_bear_the_mark_of_their_listener(family: int, host: str) -> None:
    """Of two that listen on one port, too; and after the listener has gone."""
    listeners = [socket.socket(family), socket.socket(family)]
    cookies = [cookie(each) for each in listeners]
    for each in listeners:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        each.setblocking(False)
        mark(each)
        each.bind((host, listeners[0].getsockname()[1]))
        each.listen()
    for number, each in enumerate(listeners):
        with socket.create_connection(each.getsockname()[:2]) as client:
            assert origin(client) == 0
            for index, other in enumerate(listeners[number:], number):
                try:
                    accepted, _ = other.accept()
                except BlockingIOError:
                    continue
                with accepted:
                    assert origin(accepted) == cookies[index]
                break
            else:
                pytest.fail("nobody has the connection")
        each.close()
