"""Host ports of guests: shared within one, never between two; the directory of this user's backends."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest

from xensock.calls.address import Endpoint
from xensock.supervisor.diag import Diag, open_host
from xensock.supervisor.ports import Ports, _meet, runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HERE, ANY = IPv4Address("127.0.0.1"), IPv4Address(0)


@pytest.fixture(autouse=True)
def own_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / "xensock"


@pytest.fixture
def diag() -> Iterator[Diag]:
    opened = open_host()
    yield opened
    opened.close()


@pytest.fixture
def made() -> Iterator[list[socket.socket]]:
    sockets: list[socket.socket] = []
    yield sockets
    for sock in sockets:
        sock.close()


def sharing(made: list[socket.socket], *, reuse_address: bool = False) -> socket.socket:
    sock = socket.socket()
    made.append(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse_address)
    return sock


def listening(ports: Ports, sock: socket.socket, port: int = 0) -> Endpoint:
    ports.bind(sock, Endpoint(HERE, port))
    sock.listen()
    local = Endpoint.from_python(sock.getsockname())
    ports.listens(sock, local)
    return local


@pytest.mark.parametrize("reuse_address", [False, True])
def test_a_guest_shares_its_port_with_itself(
    diag: Diag, made: list[socket.socket], reuse_address: bool
) -> None:
    ports = Ports(diag)
    local = listening(ports, sharing(made, reuse_address=reuse_address))
    for _ in range(3):
        assert listening(ports, sharing(made, reuse_address=reuse_address), local.port) == local


@pytest.mark.parametrize("reuse_address", [False, True])
@pytest.mark.parametrize("host", [HERE, ANY])
def test_a_guest_does_not_share_with_another(
    diag: Diag, made: list[socket.socket], host: IPv4Address, reuse_address: bool
) -> None:
    local = listening(Ports(diag), sharing(made, reuse_address=reuse_address))
    other = Ports(diag)
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        other.bind(sharing(made, reuse_address=reuse_address), Endpoint(host, local.port))


def test_a_guest_does_not_share_with_a_program_of_the_host(
    diag: Diag, made: list[socket.socket]
) -> None:
    program = sharing(made)
    program.bind(("127.0.0.1", 0))
    program.listen()
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        Ports(diag).bind(sharing(made), Endpoint(HERE, program.getsockname()[1]))


def test_a_guest_does_not_share_what_another_has_only_bound(
    diag: Diag, made: list[socket.socket]
) -> None:
    first = sharing(made)
    Ports(diag).bind(first, Endpoint(HERE, 0))
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        Ports(diag).bind(sharing(made), Endpoint(HERE, first.getsockname()[1]))


def test_a_guest_does_not_share_what_another_has_bound_with_both_options(
    diag: Diag, made: list[socket.socket]
) -> None:
    first = sharing(made, reuse_address=True)
    ports = Ports(diag)
    ports.bind(first, Endpoint(HERE, 0))
    local = Endpoint(HERE, first.getsockname()[1])
    if not diag.shows_bound():
        pytest.skip("Linux before 6.8 does not tell of bound sockets")
    for host in (HERE, ANY):
        with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            Ports(diag).bind(sharing(made, reuse_address=True), Endpoint(host, local.port))
    ports.bind(sharing(made, reuse_address=True), local)
    Ports(diag).bind(
        sharing(made, reuse_address=True), Endpoint(IPv4Address("127.0.0.2"), local.port)
    )


def test_ended_connections_hold_no_port_for_the_next_guest(
    diag: Diag, made: list[socket.socket]
) -> None:
    if not diag.shows_bound():
        pytest.skip("Linux before 6.8 does not tell of bound sockets")
    server = sharing(made)
    local = listening(Ports(diag), server)
    with socket.create_connection(local.as_python()):
        server.accept()[0].close()  # TIME_WAIT is on the server's side
    server.close()
    assert listening(Ports(diag), sharing(made), local.port) == local


def test_older_kernels(
    diag: Diag, made: list[socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Diag, "shows_bound", lambda self: False)
    ports = Ports(diag)
    local = listening(ports, sharing(made))
    assert listening(ports, sharing(made), local.port) == local
    with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        Ports(diag).bind(sharing(made), local)


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (("127.0.0.1", False), ("127.0.0.1", False), True),
        (("127.0.0.1", False), ("127.0.0.2", False), False),
        (("0.0.0.0", False), ("127.0.0.2", False), True),
        (("::", False), ("127.0.0.2", False), True),
        (("::", True), ("127.0.0.2", False), False),
        (("::ffff:127.0.0.1", False), ("127.0.0.1", False), True),
        (("::1", False), ("127.0.0.1", False), False),
        (("::1", False), ("::", True), True),
    ],
)
def test_which_addresses_meet(one: tuple[str, bool], other: tuple[str, bool], meet: bool) -> None:
    a, b = ip_address(one[0]), ip_address(other[0])
    assert _meet(a, one[1], b, other[1]) is meet
    assert _meet(b, other[1], a, one[1]) is meet


def test_a_port_left_behind_is_free_for_all(diag: Diag, made: list[socket.socket]) -> None:
    sock = sharing(made)
    local = listening(Ports(diag), sock)
    sock.close()
    assert listening(Ports(diag), sharing(made), local.port) == local


def test_a_port_with_ended_connections_can_be_shared_again(
    diag: Diag, made: list[socket.socket]
) -> None:
    # With SO_REUSEADDR by another guest, without by the same one.
    for reuse_address in (True, False):
        ports = Ports(diag)
        server = sharing(made, reuse_address=reuse_address)
        local = listening(ports, server)
        with socket.create_connection(local.as_python()):
            server.accept()[0].close()  # TIME_WAIT is on the server's side
        server.close()
        again = sharing(made, reuse_address=reuse_address)
        assert listening(Ports(diag) if reuse_address else ports, again, local.port) == local


def test_two_families_beside_each_other(diag: Diag, made: list[socket.socket]) -> None:
    ports = Ports(diag)
    local = listening(ports, sharing(made))
    six = socket.socket(socket.AF_INET6) if socket.has_ipv6 else None
    if six is None:
        pytest.skip("this host has no IPv6")
    made.append(six)
    six.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    ports.bind(six, Endpoint(IPv6Address("::"), local.port))
    assert six.getsockname()[1] == local.port


def test_the_kernels_other_errors(diag: Diag, made: list[socket.socket]) -> None:
    ports = Ports(diag)
    for sock in (sharing(made), socket.socket()):
        made.append(sock)
        with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
            ports.bind(sock, Endpoint(IPv4Address("192.0.2.77"), 0))
    bound = sharing(made)
    ports.bind(bound, Endpoint(HERE, 0))
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        ports.bind(bound, Endpoint(HERE, 0))


def test_whose_listener_it_is(diag: Diag, made: list[socket.socket]) -> None:
    ports, other = Ports(diag), Ports(diag)
    sock = sharing(made)
    local = listening(ports, sock)
    assert ports.owner(local)
    assert ports.is_listening(sock)
    assert not other.owner(local)
    assert not other.is_listening(sock)
    assert not ports.owner(Endpoint(IPv4Address("127.0.0.9"), local.port))
    sock.close()
    assert not ports.owner(local)
    with socket.create_server(local.as_python()):  # the same port, somebody else's
        assert not ports.owner(local)


def test_a_wildcard_listener_is_reached_by_loopback(diag: Diag, made: list[socket.socket]) -> None:
    ports = Ports(diag)
    sock = sharing(made)
    ports.bind(sock, Endpoint(ANY, 0))
    sock.listen()
    port = sock.getsockname()[1]
    ports.listens(sock, Endpoint(ANY, port))
    assert ports.owner(Endpoint(HERE, port))


def test_one_of_many_guests_gets_the_port(diag: Diag, made: list[socket.socket]) -> None:
    port = listening(Ports(diag), sharing(made)).port
    made.pop().close()
    got: list[str] = []
    start = threading.Barrier(8)

    def guest(sock: socket.socket) -> None:
        own = open_host()
        start.wait(30)
        try:
            listening(Ports(own), sock, port)
            got.append("bound")
        except OSError as error:
            got.append(errno.errorcode[error.errno or 0])
        own.close()

    threads = [threading.Thread(target=guest, args=(sharing(made),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == ["EADDRINUSE"] * 7 + ["bound"]


def test_the_directory_is_private(own_runtime_directory: Path) -> None:
    assert runtime_directory() == own_runtime_directory
    assert stat.S_IMODE(own_runtime_directory.stat().st_mode) == 0o700
    assert runtime_directory() == own_runtime_directory


@pytest.mark.parametrize("base", ["", "/nonexistent", "relative"])
def test_no_session_directory(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", base)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    expected = f"{tmp_path}/xensock-{os.geteuid()}" if os.geteuid() else "/run/xensock"
    assert str(runtime_directory()) == expected


def test_a_directory_that_is_a_link_is_refused(own_runtime_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    own_runtime_directory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError):
        runtime_directory()


def test_a_file_in_its_place_is_refused(own_runtime_directory: Path) -> None:
    own_runtime_directory.touch()
    with pytest.raises(PermissionError):
        runtime_directory()


class Late(socket.socket):
    """A socket on which another thread sets SO_REUSEPORT once it was looked at."""

    def getsockopt(self, level: int, name: int, *size: int) -> int:  # type: ignore[override]
        before = super().getsockopt(level, name)
        if name == socket.SO_REUSEPORT:
            self.setsockopt(level, name, 1)
        return before


def test_a_port_of_somebody_else_is_not_shared_by_an_option_that_comes_late(diag: Diag) -> None:
    with socket.socket() as theirs, Late() as ours:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        theirs.bind((str(HERE), 0))
        theirs.listen()
        with pytest.raises(OSError, match=r"in use") as failed:
            Ports(diag).bind(ours, Endpoint(HERE, theirs.getsockname()[1]))
        assert failed.value.errno == errno.EADDRINUSE
