"""The control API: what it says, to whom, and what it answers to nonsense."""

from __future__ import annotations

import array
import fcntl
import json
import socket
import termios
from typing import TYPE_CHECKING, Any

import pytest

from backkit import Front, free_port, until
from daemonkit import Daemon, daemon
from xensock import __version__
from xensock.backend.control import LONGEST, listening_socket
from xensock.transport import url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path) as made:
        yield made


@pytest.fixture
def guest(served: Daemon) -> Iterator[Front]:
    made = Front(url.connect(served.url, name="tester")).handshake()
    yield made
    made.close()


def test_every_answer_has_the_requests_id_and_the_schema(served: Daemon) -> None:
    answer = served.ask("version")
    assert (answer["id"], answer["schema"], answer["ok"]) == (7, 1, True)
    assert (answer["xensock"], answer["protocol"]) == (__version__, "pvcalls 1")
    assert answer["pid"] == served.process.pid


def test_guests_and_their_sockets(served: Daemon, guest: Front) -> None:
    port = free_port()
    id = guest.listener(port=port)
    (told,) = served.ask("guests")["guests"]
    assert (told["name"], told["state"], told["sockets"]) == ("tester", "connected", 1)
    assert told["extensions"] == []
    (sock,) = served.ask("sockets", guest=told["guest"])["sockets"]
    assert (sock["id"], sock["state"], sock["local"]) == (id, "listening", f"127.0.0.1:{port}")
    assert sock["peer"] is None
    assert served.ask("sockets")["sockets"] == [sock]


def test_counters_of_one_and_of_all(served: Daemon, guest: Front) -> None:
    guest.listener()
    (told,) = served.ask("guests")["guests"]
    assert served.ask("counters", guest=told["guest"])["counters"]["commands"] == 3
    guest.close()
    until(lambda: served.ask("guests")["guests"] == [])
    assert served.ask("counters")["counters"]["commands"] == 3


def test_a_guest_is_disconnected(served: Daemon, guest: Front) -> None:
    (told,) = served.ask("guests")["guests"]
    assert served.ask("disconnect", guest=told["guest"])["ok"]
    until(lambda: guest.session.error is not None)
    assert "the administrator disconnected it" in str(guest.session.error)
    assert served.ask("disconnect", guest=told["guest"])["error"]["code"] == "no-such-guest"


def test_stop_ends_the_backend(served: Daemon) -> None:
    assert served.ask("stop")["ok"]
    assert served.process.wait(10) == 0


def test_an_answer_in_progress_comes_whole(served: Daemon) -> None:
    """Answers of which the socket holds two or three, and a backend that is stopped while it sends the next."""
    request = b'{"id": "%s", "command": "version"}\n' % (60_000 * b"x")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(served.control)
        client.sendall(5 * request)
        until(lambda: _waiting(client) > 2 * len(request))
        assert served.ask("stop")["ok"]
        with client.makefile() as lines:
            told = [line for line in lines if json.loads(line)["ok"]]
    assert len(told) >= 3
    assert served.process.wait(10) == 0


def _waiting(sock: socket.socket) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", "not-json"),
        (b"[1, 2]", "not-json"),
        (b"\xff\xfe", "not-json"),
        (100 * b"[" + b"1", "not-json"),
        (b'{"id": 7, "command": "frobnicate"}', "unknown-command"),
        (b'{"id": 7, "command": ["version"]}', "unknown-command"),
        (b'{"id": 7}', "unknown-command"),
        (b'{"id": 7, "command": "disconnect", "guest": "tester"}', "no-such-guest"),
        (b'{"id": 7, "command": "disconnect", "guest": [1]}', "no-such-guest"),
        (b'{"id": 7, "command": "disconnect"}', "no-such-guest"),
        (b'"' + LONGEST * 2 * b"x", "too-long"),
    ],
    ids=range(11),
)
def test_nonsense_is_answered(served: Daemon, line: bytes, code: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(served.control)
        client.sendall(line + b"\n")
        answer: dict[str, Any] = json.loads(client.makefile().readline())
    assert (answer["ok"], answer["error"]["code"]) == (False, code)
    assert served.ask("version")["ok"]


def test_a_file_that_is_no_socket_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(OSError, match="in use"):
        listening_socket(str(path))
    assert path.read_text() == "data"


def test_a_socket_that_nobody_listens_at_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c"
    listening_socket(str(path)).close()
    with listening_socket(str(path)), pytest.raises(OSError, match="in use"):
        listening_socket(str(path))
