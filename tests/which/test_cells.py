"""Every cell of the table "which sockets, where", tried for real."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from daemonkit import daemon
from which import probe
from which.cells import CARRIED, COLUMNS, FAMILIES, LOCAL, ROWS, Row
from world.fixtures import only
from world.runner import Guest
from xensock.client import sockets
from xensock.client.link import Link
from xensock.pvcalls.frontend import Frontend
from xensock.transport.url import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from world.internet import World

ROOT = Path(__file__).parents[2]
ROWS_BY_NAME = [pytest.param(row, id=row.name) for row in ROWS]
OUTCOMES: dict[str, list[str]] = {}
COLUMN = {"ring": "relay", "own direct": "own", "own relay": "own"}  # with --backend it is as relay
OWN = {"own direct": "direct", "own relay": "relay"}  # with --family own


def loopback(sock: Any, kind: tuple[int, int, int]) -> None:
    """An exchange with a socket of the kernel's, of the same kind, on loopback."""
    family, type_, protocol = kind
    plain = socket.AF_INET if family == socket.AF_INET else socket.AF_INET6
    host = "127.0.0.1" if plain == socket.AF_INET else "::1"
    if protocol in probe.ECHO_REQUEST:
        probe.ping(sock, protocol, (host, 0))
        return
    with socket.socket(plain, type_, protocol) as server:
        server.settimeout(probe.LIMIT_S)
        server.bind((host, 0))
        if type_ == socket.SOCK_DGRAM:
            sock.sendto(b"probe", server.getsockname()[:2])
            assert server.recv(100) == b"probe"
            return
        server.listen()
        sock.connect(server.getsockname()[:2])
        accepted, _ = server.accept()
        with accepted:
            sock.sendall(b"probe")
            assert accepted.recv(100) == b"probe"


@cache
def native(kind: tuple[int, int, int]) -> str:
    """What the kernel makes of it without us."""
    if kind[0] == FAMILIES["AF_XENSOCK"]:
        return CARRIED
    return probe.outcome(socket.socket, kind, loopback)


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Link]]:
    """A frontend with everything, and one that speaks version 1 alone."""
    with daemon(tmp_path_factory.mktemp("which"), "--allow=loopback", "--allow=any") as backend:
        made = {
            "ring": Link(Frontend(connect(backend.url, name="which"))),
            "v1": Link(
                Frontend(
                    connect(backend.url, name="which-v1"), wanted=frozenset(), ring_page_order=0
                )
            ),
        }
        try:
            yield made
        finally:
            for link in made.values():
                link.close()


@pytest.mark.parametrize("column", ["ring", "v1"])
@pytest.mark.parametrize("row", ROWS_BY_NAME)
def test_own_sockets(row: Row, column: str, links: dict[str, Link]) -> None:
    def make(family: int, kind: int, protocol: int) -> Any:
        return sockets.socket(family, kind, protocol, link=links[column])

    expected = getattr(row, column)
    if expected == LOCAL:
        # The kernel's own answer, whatever it is for this user and this kernel.
        expected = native(row.numbers)
    elif expected == CARRIED and native(row.numbers) != CARRIED:
        expected = native(row.numbers)
    assert probe.outcome(make, row.numbers, loopback) == expected


def guests_outcomes(world: World, path: str, xensock: Callable[[], list[str]]) -> list[str]:
    """What a guest over that path makes of every row, in order; "native": the world's host itself."""
    if path not in OUTCOMES:
        guest = Guest.create(world, OWN.get(path, path), xensock())
        try:
            script = guest.directory / "probe.py"
            script.write_text(Path(probe.__file__).read_text())
            done = guest.run(
                ["python3", str(script), world.web4, world.web6, str(world.echo_port)],
                options=("--family", "own") if path.startswith("own") else (),
                input=json.dumps([row.numbers for row in ROWS]),
                timeout=100,
                check=True,
            )
        finally:
            guest.close()
        OUTCOMES[path] = json.loads(done.stdout)
    return OUTCOMES[path]


@pytest.mark.parametrize("path", [*only("direct", "relay", "ring"), *OWN])
@pytest.mark.parametrize("row", ROWS_BY_NAME)
def test_guests(row: Row, path: str, world: World, request: pytest.FixtureRequest) -> None:
    if row.family == "AF_INET6" and not world.has_ipv6:
        pytest.skip("this host has no IPv6")

    def xensock() -> list[str]:
        command: list[str] = request.getfixturevalue("xensock")
        return command

    found = guests_outcomes(world, path, xensock)[ROWS.index(row)]
    expected = getattr(row, COLUMN.get(path, path))
    if expected == CARRIED and row.family != "AF_XENSOCK":
        there = guests_outcomes(world, "native", list)[ROWS.index(row)]
        expected = expected if there == CARRIED else there
    if expected == LOCAL and row.family.startswith("AF_INET"):
        expected = "not carried: ECONNREFUSED"  # of the guest's own kernel, where nobody listens
    assert found == expected


def test_every_cell_is_a_known_word() -> None:
    import errno

    words = {CARRIED, LOCAL, *errno.errorcode.values()}
    assert all(getattr(row, column) in words for row in ROWS for column in COLUMNS)
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_the_document_has_the_table() -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "tools" / "which_sockets.py"), "--check"], check=True
    )
