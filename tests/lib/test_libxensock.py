"""libxensock with a real `xensock backend` and ordinary servers and clients beyond it."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from libxensock import PREFIX, V1, Attachment

from daemonkit import Daemon, daemon

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOST = "127.0.0.1"
PATIENCE = 10
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with daemon(tmp_path_factory.mktemp("d"), "--allow=loopback", "--deny=connect:loopback:9") as d:
        yield d


@pytest.fixture(params=["extended", "v1"])
def guest(backend: Daemon, request: pytest.FixtureRequest) -> Iterator[Attachment]:
    with Attachment(backend.url, flags=V1 if request.param == "v1" else 0) as attachment:
        yield attachment


@pytest.fixture
def extended(backend: Daemon) -> Iterator[Attachment]:
    with Attachment(backend.url) as attachment:
        yield attachment


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(PATIENCE)
        yield listener


def accepted(server: socket.socket) -> socket.socket:
    sock, _ = server.accept()
    sock.settimeout(PATIENCE)
    return sock


def test_bytes_both_ways(guest: Attachment, server: socket.socket) -> None:
    with guest.connected(server.getsockname()) as near, accepted(server) as far:
        assert near.send(b"question") == 8
        assert far.recv(100) == b"question"
        far.sendall(b"answer")
        assert near.recv(100) == b"answer"
        far.shutdown(socket.SHUT_WR)
        assert near.recv(100) == b""
        assert near.recv(100) == b""
        near.send(b"still open")
        assert far.recv(100) == b"still open"


def test_everything_arrives_whole(guest: Attachment, server: socket.socket) -> None:
    """Both ways at once and more than any buffer holds; closing loses nothing."""
    data = bytes(range(251)) * 40_000
    digests = []

    def echo() -> None:
        with accepted(server) as far:
            seen = hashlib.sha256()
            left = len(data)
            while left:
                part = far.recv(1 << 16)
                seen.update(part)
                left -= len(part)
                far.sendall(part)
            digests.append(seen.digest())

    thread = threading.Thread(target=echo)
    thread.start()
    with guest.connected(server.getsockname()) as near:
        sender = threading.Thread(target=lambda: near.send(data))
        sender.start()
        back = near.recv(len(data), socket.MSG_WAITALL)
        sender.join(PATIENCE)
    thread.join(PATIENCE)
    assert back == data
    assert digests == [hashlib.sha256(data).digest()]


def test_what_was_sent_before_close_arrives(guest: Attachment, server: socket.socket) -> None:
    data = b"z" * 3_000_000
    got = []

    def read() -> None:
        with accepted(server) as far, far.makefile("rb") as stream:
            got.append(stream.read())

    thread = threading.Thread(target=read)
    thread.start()
    near = guest.connected(server.getsockname())
    near.send(data)
    near.close()
    thread.join(PATIENCE)
    assert got == [data]


def test_refusals_have_their_errno(guest: Attachment, server: socket.socket) -> None:
    free = server.getsockname()
    server.close()
    with guest.socket() as near, pytest.raises(ConnectionRefusedError):
        near.connect(free)
    with guest.socket() as near, pytest.raises(PermissionError):
        near.connect((HOST, 9))  # a rule
    with guest.socket() as near, pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        near.bind(("198.51.100.77", 0))


def test_a_reset_is_a_reset(extended: Attachment, server: socket.socket) -> None:
    with extended.connected(server.getsockname()) as near:
        far = accepted(server)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        far.sendall(b"last words")
        assert near.poll(select.POLLIN, PATIENCE) & select.POLLIN
        far.close()
        while not near.poll(select.POLLIN, PATIENCE) & select.POLLERR:
            pass
        assert near.recv(100) == b"last words"
        with pytest.raises(ConnectionResetError):
            near.recv(100)
    near = extended.connected(server.getsockname())
    far = accepted(server)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    near.close()
    with far, pytest.raises(ConnectionResetError):
        far.recv(100)


def test_half_close(extended: Attachment, server: socket.socket) -> None:
    with extended.connected(server.getsockname()) as near, accepted(server) as far:
        near.send(b"all of it")
        near.shutdown(socket.SHUT_WR)
        with far.makefile("rb") as stream:
            assert stream.read() == b"all of it"
        far.sendall(b"and the answer")
        far.close()
        assert near.rest() == b"and the answer"
        with pytest.raises(BrokenPipeError):
            near.send(b"x")


def test_names_and_options(extended: Attachment, server: socket.socket) -> None:
    with extended.connected(server.getsockname()) as near, accepted(server) as far:
        assert near.getsockname() == far.getpeername()
        assert near.getpeername() == far.getsockname()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, struct.pack("i", 1))
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        with pytest.raises(OSError, match=os.strerror(errno.ENOPROTOOPT)):
            near.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0\0")


@pytest.mark.parametrize("host", [HOST, "::1"])
def test_a_guest_listens_on_the_backends_host(extended: Attachment, host: str) -> None:
    with extended.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.bind((host, 0))
        listener.listen()
        name = listener.getsockname()
        assert name is not None
        assert not listener.poll(select.POLLIN, 0)
        with socket.create_connection(name, PATIENCE) as far:
            assert listener.poll(select.POLLIN, PATIENCE) == select.POLLIN
            near, peer = listener.accept()
            with near:
                assert peer == far.getsockname()[:2]
                far.sendall(b"hello")
                assert near.recv(5, socket.MSG_WAITALL) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(name, PATIENCE)


def test_connecting_without_waiting(extended: Attachment, server: socket.socket) -> None:
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
    with extended.socket(kind=kind) as near:
        with pytest.raises(BlockingIOError):
            near.connect(server.getsockname())
        assert near.poll(select.POLLOUT, PATIENCE) == select.POLLOUT
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        with accepted(server) as far:
            with pytest.raises(BlockingIOError):
                near.recv(1)
            far.sendall(b"x")
            assert near.poll(select.POLLIN, PATIENCE) == select.POLLIN
    free = server.getsockname()
    server.close()
    with extended.socket(kind=kind) as near:
        with pytest.raises(BlockingIOError):
            near.connect(free)
        assert near.poll(select.POLLOUT, PATIENCE) & select.POLLERR
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED


def test_a_stream_that_nobody_reads_fills_up(extended: Attachment, server: socket.socket) -> None:
    with extended.connected(server.getsockname()) as near, accepted(server) as far:
        sent = 0
        while near.poll(select.POLLOUT, 0.3):
            sent += near.send(b"f" * 65536, socket.MSG_DONTWAIT)
        sent += near.send(b"f" * (1 << 20), socket.MSG_DONTWAIT)
        with pytest.raises(BlockingIOError):
            near.send(b"f", socket.MSG_DONTWAIT)
        got = 0
        while got < sent:
            got += len(far.recv(1 << 20))
        assert near.poll(select.POLLOUT, PATIENCE) == select.POLLOUT


def test_every_connection_is_recorded(extended: Attachment, backend: Daemon) -> None:
    with socket.create_server((HOST, 0)) as server:
        extended.connected(server.getsockname()).close()
        target = f"{HOST}:{server.getsockname()[1]}"
    found = [r for r in backend.records() if r["target"] == target]
    assert [r["verb"] for r in found] == ["connect"]
    assert found[0]["guest"] == "tester"


def test_many_sockets_come_and_go(guest: Attachment, server: socket.socket) -> None:
    for _ in range(100):
        with guest.connected(server.getsockname()) as near, accepted(server) as far:
            far.sendall(b"1")
            assert near.recv(1) == b"1"


def test_a_backend_that_dies(tmp_path: Path) -> None:
    with (
        daemon(tmp_path, "--allow=loopback") as mortal,
        Attachment(mortal.url) as guest,
        closing(socket.create_server((HOST, 0))) as server,
    ):
        near = guest.connected(server.getsockname())
        mortal.process.kill()
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        assert guest.reason
        with pytest.raises(OSError, match=os.strerror(errno.ENETDOWN)):
            guest.socket()


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Attachment(f"local:{tmp_path}/nobody")


PROGRAM = r"""
#include <xensock.h>
#include <arpa/inet.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[argc - 1]))};
    struct xensock *x = xensock_attach(NULL, NULL, 0);
    char line[64];
    int s;

    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (!x || (s = xensock_socket(x, AF_INET, SOCK_STREAM, 0)) < 0)
        return 1;
    if (xensock_connect(s, (struct sockaddr *)&a, sizeof a) || xensock_send(s, "hi", 2, 0) != 2)
        return 2;
    if (write(1, line, xensock_recv(s, line, sizeof line, 0)) < 0)
        return 3;
    xensock_detach(x);
    return 0;
}
"""


@pytest.mark.parametrize("language", ["cc", "c++"])
def test_a_program_is_built_by_pkg_config(
    backend: Daemon, server: socket.socket, tmp_path: Path, language: str
) -> None:
    missing = [name for name in (language, "pkg-config") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    source, program = tmp_path / f"p.{'c' if language == 'cc' else 'cc'}", tmp_path / "p"
    source.write_text(PROGRAM)
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "libxensock"],
        env={"PKG_CONFIG_PATH": str(PREFIX / "lib/pkgconfig"), "PATH": "/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()
    subprocess.run(
        [language, "-Wall", "-Werror", source, "-o", program, *flags, f"-Wl,-rpath,{PREFIX}/lib"],
        check=True,
    )
    with subprocess.Popen(
        [program, str(server.getsockname()[1])],
        env={"XENSOCK": backend.url},
        stdout=subprocess.PIPE,
    ) as process:
        with accepted(server) as far:
            assert far.recv(10) == b"hi"
            far.sendall(b"there")
        out, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (0, b"there")
