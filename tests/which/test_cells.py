"""Every cell of the tables "which sockets, where", tried for real."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from daemonkit import daemon
from which import probe
from which.cells import CARRIED, COLUMNS, FAMILIES, IGNORED, LOCAL, ROWS, URGENT, Row
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
URGENT_BY_NAME = [pytest.param(row, id=row.name) for row in URGENT]
OUTCOMES: dict[str, dict[str, list[str]]] = {}
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


def loopback_urgent(sock: Any, kind: tuple[int, int, int]) -> str | None:
    """The same of urgent bytes."""
    family, type_, protocol = kind
    plain = socket.AF_INET if family == socket.AF_INET else socket.AF_INET6
    host = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}.get(family, "::ffff:127.0.0.1")
    if protocol in probe.ECHO_REQUEST:
        sock.connect((host, 0))
        probe.send_urgent(sock)
        return IGNORED
    with socket.socket(plain, type_, protocol) as server:
        server.settimeout(probe.LIMIT_S)
        server.bind((host, 0))
        if type_ == socket.SOCK_DGRAM:
            sock.connect(server.getsockname()[:2])
            probe.send_urgent(sock)
            assert server.recv(100) == b"ab!"
            return IGNORED
        server.listen()
        sock.connect(server.getsockname()[:2])
        accepted, _ = server.accept()
        with accepted:
            probe.send_urgent(sock)
            probe.hear_urgent(accepted)
            probe.send_urgent(accepted)
            probe.hear_urgent(sock)
    return None


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


class Far:
    """A server of the test's own on the peer that sends urgent bytes back as such."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._listener = world.peer.listen("::" if world.has_ipv6 else "0.0.0.0")
        self._listener.settimeout(None)
        self.address: tuple[str, str, int] = (
            world.peer.addr4,
            world.peer.addr6,
            self._listener.getsockname()[1],
        )
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            with conn, suppress(OSError):
                probe.hear_urgent(conn)
                probe.send_urgent(conn)
                conn.recv(1)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture(scope="module")
def far(world: World) -> Iterator[Far]:
    made = Far(world)
    try:
        yield made
    finally:
        made.close()


def guests_outcomes(far: Far, path: str, xensock: Callable[[], list[str]]) -> dict[str, list[str]]:
    """What a guest over that path makes of every row of each table, in order; "native": the world's host itself."""
    if path not in OUTCOMES:
        world = far.world
        guest = Guest.create(world, OWN.get(path, path), xensock())
        try:
            script = guest.directory / "probe.py"
            script.write_text(Path(probe.__file__).read_text())
            done = guest.run(
                [
                    *("python3", str(script), world.web4, world.web6, str(world.echo_port)),
                    *map(str, far.address),
                ],
                options=("--family", "own") if path.startswith("own") else (),
                input=json.dumps(
                    {
                        "kinds": [row.numbers for row in ROWS],
                        "urgent": [row.numbers for row in URGENT],
                    }
                ),
                timeout=100,
                check=True,
            )
        finally:
            guest.close()
        OUTCOMES[path] = json.loads(done.stdout)
    return OUTCOMES[path]


def both_outcomes(
    request: pytest.FixtureRequest, far: Far, path: str, table: str, at: int
) -> tuple[str, str]:
    """What a guest over that path makes of a row, and the world's host itself."""

    def xensock() -> list[str]:
        command: list[str] = request.getfixturevalue("xensock")
        return command

    found = guests_outcomes(far, path, xensock)[table][at]
    return found, guests_outcomes(far, "native", list)[table][at]


paths = pytest.mark.parametrize("path", [*only("direct", "relay", "ring"), *OWN])


@paths
@pytest.mark.parametrize("row", ROWS_BY_NAME)
def test_guests(row: Row, path: str, far: Far, request: pytest.FixtureRequest) -> None:
    if row.family == "AF_INET6" and not far.world.has_ipv6:
        pytest.skip("this host has no IPv6")
    found, there = both_outcomes(request, far, path, "kinds", ROWS.index(row))
    expected = getattr(row, COLUMN.get(path, path))
    if expected == CARRIED and row.family != "AF_XENSOCK":
        expected = there
    if expected == LOCAL and row.family.startswith("AF_INET"):
        expected = "not carried: ECONNREFUSED"  # of the guest's own kernel, where nobody listens
    assert found == expected


# --- urgent bytes


def refused(row: Row, column: str) -> str:
    """How an errno of that cell shows: where there is such a socket, it is its sending that fails."""
    cell: str = getattr(row, column)
    kind = next(each for each in ROWS if each.name == row.name)
    return f"not carried: {cell}" if getattr(kind, column) in (CARRIED, LOCAL) else cell


@pytest.mark.parametrize("column", ["ring", "v1"])
@pytest.mark.parametrize("row", URGENT_BY_NAME)
def test_urgent_bytes_of_own_sockets(row: Row, column: str, links: dict[str, Link]) -> None:
    def make(family: int, kind: int, protocol: int) -> Any:
        return sockets.socket(family, kind, protocol, link=links[column])

    if row.family == "AF_UNIX":
        assert probe.near_urgent(make, row.numbers) == probe.near_urgent(socket.socket, row.numbers)
        return
    found = probe.outcome(make, row.numbers, loopback_urgent)
    cell = getattr(row, column)
    if cell in (CARRIED, IGNORED):
        assert found == cell
    elif found != refused(row, column):
        assert native(row.numbers) == found  # no ping sockets for this user, by the kernel


@paths
@pytest.mark.parametrize("row", URGENT_BY_NAME)
def test_urgent_bytes_of_guests(
    row: Row, path: str, far: Far, request: pytest.FixtureRequest
) -> None:
    if row.family == "AF_INET6" and not far.world.has_ipv6:
        pytest.skip("this host has no IPv6")
    found, there = both_outcomes(request, far, path, "urgent", URGENT.index(row))
    column = COLUMN.get(path, path)
    cell = getattr(row, column)
    if row.family == "AF_UNIX":
        assert found == there
    elif cell == LOCAL:
        assert found == "not carried: ECONNREFUSED"  # of the guest's own kernel
    elif cell in (CARRIED, IGNORED):
        assert found == cell
        assert row.family == "AF_XENSOCK" or there == cell
    else:
        kind = "EACCES" if there == "EACCES" else refused(row, column)  # where nobody may ping
        assert found == kind


def test_every_cell_is_a_known_word() -> None:
    import errno

    words = {CARRIED, LOCAL, *errno.errorcode.values()}
    assert all(getattr(row, column) in words for row in ROWS for column in COLUMNS)
    assert len({row.name for row in ROWS}) == len(ROWS)
    words |= {IGNORED, "EOPNOTSUPP"}
    assert all(getattr(row, column) in words for row in URGENT for column in COLUMNS)
    assert len({row.name for row in URGENT}) == len(URGENT)


def test_the_document_has_the_tables() -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "tools" / "which_sockets.py"), "--check"], check=True
    )
