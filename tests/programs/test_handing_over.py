"""Servers that get their sockets from somebody else: a master that forks, a manager that listens for them, inetd.

And peers that call back.
"""

from __future__ import annotations

import pytest

from world.fixtures import only
from world.namespaces import eventually, needs

GUNICORN = """
import os, pathlib, time

def app(environ, start_response):
    # Answers once another worker has a request, too.
    here = pathlib.Path("workers")
    here.joinpath(str(os.getpid())).touch()
    limit = time.monotonic() + 30
    while len(list(here.iterdir())) < 2 and time.monotonic() < limit:
        time.sleep(0.01)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{len(list(here.iterdir())) > 1} {environ['REMOTE_ADDR']}\\n".encode()]
"""
ACTIVATED = """
import os, socket
assert os.environ["LISTEN_PID"] == str(os.getpid()) and os.environ["LISTEN_FDS"] == "2"
for number in 3, 4:
    server = socket.socket(fileno=number)
    client, (host, *_) = server.accept()
    with client, server:
        client.sendall(f"{host} {server.getsockname()[1]}".encode())
"""
SERVED = """
import socket
with socket.create_server(("127.0.0.1", 8000)) as server:
    for _ in range(2):
        client, name = server.accept()
        with client:
            client.sendall(repr(name[:2]).encode())
"""
ASKED = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as sock:
    said = sock.makefile().read()
    print(said == repr(sock.getsockname()[:2]), said)
"""


def read(space, guest, port):
    """All that a server of the guest's says to who connects from here."""
    with space.connect(guest.world.host.addr4, port) as sock:
        return sock.makefile().read()


@needs("gunicorn")
def test_workers_of_gunicorn_share_a_listener(guest):
    port, address = guest.port(), guest.world.host.addr4
    (guest.directory / "app.py").write_text(GUNICORN)
    workers = guest.directory / "workers"
    workers.mkdir()
    guest.world.user.own(workers)
    argv = ["gunicorn", "--workers=3", "--worker-tmp-dir=/tmp"]
    argv += [f"--bind={address}:{port}", "app:app"]
    with guest.popen(argv, listens=port):
        url = f"http://{address}:{port}/?[1-12]"
        curl = ["curl", "-sS", "--fail", "--max-time", "40", "-Z", "--parallel-immediate", url]
        done = guest.world.peer.run(curl, check=True)
        assert done.stdout.splitlines() == [f"True {guest.world.peer.addr4}"] * 12
    guest.mediated(1, "listen", f":{port}")


@needs("systemd-socket-activate")
def test_sockets_of_a_manager_are_inherited(guest):
    """LISTEN_FDS (sd_listen_fds(3)): the program starts with the first connection, and has both listeners."""
    one, two = guest.port(), guest.port()
    address = guest.world.host.addr4
    argv = ["systemd-socket-activate", f"--listen={address}:{one}", f"--listen={address}:{two}"]
    with guest.popen([*argv, guest.world.python, "-c", ACTIVATED], listens=(one, two)) as running:
        for port in one, two:
            assert read(guest.world.peer, guest, port) == f"{guest.world.peer.addr4} {port}"
        assert running.wait() == 0
    guest.mediated(2, "listen", address)


@needs("systemd-socket-activate")
def test_a_connection_is_standard_input(guest):
    """As inetd does it: one process for each connection, which is its standard input and output."""
    port = guest.port()
    listen = f"--listen={guest.world.host.addr4}:{port}"
    argv = ["systemd-socket-activate", "--inetd", "--accept", listen]
    with guest.popen([*argv, "tr", "a-z", "A-Z"], listens=port):
        for word in "first", "second":
            with guest.world.peer.connect(guest.world.host.addr4, port) as sock:
                sock.sendall(word.encode())
                sock.shutdown(1)
                assert sock.makefile().read() == word.upper()


def test_an_ftp_server_calls_back(guest):
    """Active mode (RFC 959, RFC 2428): the client listens at its connection's address, and is called."""
    world = guest.world
    if world.host.run([world.python, "-c", "import pyftpdlib"]).returncode:
        pytest.skip("no pyftpdlib here: run tools/prepare")
    directory = guest.directory / "files"
    directory.mkdir()
    # More than all buffers hold: curl wants the connection before it hears that all was sent.
    size = 32 << 20
    (directory / "file").write_bytes(bytes(size))
    ftpd = [world.python, "-m", "pyftpdlib", "-i", world.peer.addr4, "-p", "2121"]
    server = world.peer.popen([*ftpd, "-d", str(directory)], stdout=-3, stderr=-3)
    try:
        eventually(lambda: 2121 in world.peer.listening(), 20, "the server listens")
        url = f"ftp://{world.peer.addr4}:2121/file"
        for more in [], ["--disable-eprt"]:
            argv = ["curl", "-sS", "--max-time", "40", "--ftp-port", "-", *more, url]
            done = guest.run([*argv, "-o", "got", "-w", "%{size_download}"], check=True)
            assert done.stdout == str(size)
            assert (guest.directory / "got").read_bytes() == bytes(size)
    finally:
        server.terminate()
        server.wait(20)
    guest.mediated(2, "listen")


@pytest.mark.parametrize("guest", only("direct", "relay", "ring"), indirect=True)
def test_guests_reach_each_other_by_published_port(guest):
    """The server listens on its loopback; it sees the address that the client has."""
    port = guest.port()
    publish = ("--publish", f"{port}:8000")
    argv = [guest.world.python, "-c", SERVED]
    with guest.popen(argv, options=publish, listens=port) as server:
        for _ in range(2):
            address = guest.world.host.addr4
            words = [guest.world.python, "-c", ASKED, address, str(port)]
            done = guest.run(words, check=True)
            assert done.stdout.startswith("True"), done.stdout
        assert server.wait() == 0
