"""AF_XENSOCK by `xensock.socket`: one family for IPv4 and IPv6 of the backend's network."""

from __future__ import annotations

import socket as standard

import pytest

import xensock
from xensock.calls.family import AF_XENSOCK
from xensock.client import sockets

PATIENCE_S = 10


@pytest.mark.parametrize(
    ("host", "told"),
    [
        ("127.0.0.1", "::ffff:127.0.0.1"),
        ("::1", "::1"),
        ("localhost", None),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1"),
    ],
)
def test_both_families_by_one(attached: str, host: str, told: str | None) -> None:
    with sockets.socket(AF_XENSOCK) as listener, sockets.socket(AF_XENSOCK) as client:
        listener.bind(("::", 0))
        listener.listen()
        listener.settimeout(PATIENCE_S)
        client.connect((host, listener.getsockname()[1]))
        assert told in (None, client.getpeername()[0])
        accepted, address = listener.accept()
        with accepted:
            assert address == client.getsockname()
            assert accepted.family == client.family == listener.family == AF_XENSOCK
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"
        with client.dup() as twin:
            assert twin.family == AF_XENSOCK


def test_datagrams(attached: str) -> None:
    with (
        sockets.socket(AF_XENSOCK, standard.SOCK_DGRAM) as one,
        sockets.socket(AF_XENSOCK, standard.SOCK_DGRAM) as two,
    ):
        two.bind(("127.0.0.1", 0))
        two.settimeout(PATIENCE_S)
        one.sendto(b"x", ("127.0.0.1", two.getsockname()[1]))
        assert two.recvfrom(1)[1][0] == "::ffff:127.0.0.1"


def test_a_kernel_does_not_know_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="not supported"):
        standard.socket(AF_XENSOCK)
    monkeypatch.delenv("XENSOCK", raising=False)
    monkeypatch.setattr("xensock.client.attachment._current", None)
    with pytest.raises(xensock.NotAttached):
        sockets.socket(AF_XENSOCK)
