"""curl, and wget with glibc and as static busybox, against the world's web server."""

import hashlib
import re
import subprocess
import sys

import pytest

from world.fixtures import only
from world.internet import LARGE
from world.namespaces import needs, stop

LARGE_SHA = hashlib.sha256(bytes(range(256)) * (LARGE // 256)).hexdigest()
FETCH = {
    "curl": ["curl", "-sS", "--max-time", "20", "-o"],
    "wget": ["wget", "-q", "-T", "20", "-t", "1", "-O"],
    "busybox": ["busybox", "wget", "-q", "-O"],  # Debian's crashes on -T
}
clients = pytest.mark.parametrize("client", [pytest.param(c, marks=needs(c)) for c in FETCH])


def fetch(guest, client, url):
    """What the client got, as bytes."""
    guest.run([*FETCH[client], "page", url], check=True)
    return (guest.directory / "page").read_bytes()


@clients
def test_a_page_by_name(guest, client):
    assert fetch(guest, client, "http://v4only.test/") == b"hello from the world\n"
    guest.mediated(1, "connect", "198.51.100.11:80")
    guest.mediated(1, "resolve", "v4only.test")


@clients
def test_a_large_page_is_whole(guest, client):
    page = fetch(guest, client, "http://alias.test/large")
    assert hashlib.sha256(page).hexdigest() == LARGE_SHA
    guest.mediated(1, "connect", ":80")


@clients
def test_over_ipv6_the_server_sees_the_hosts_address(guest, client):
    if not guest.world.has_ipv6:
        pytest.skip("this host has no IPv6")
    page = fetch(guest, client, f"http://[{guest.world.web6}]/address")
    assert page.decode() == guest.world.host.addr6 + "\n"
    guest.mediated(1, "connect", f"[{guest.world.web6}]:80")


@clients
def test_the_server_sees_the_hosts_address(guest, client):
    page = fetch(guest, client, f"http://{guest.world.web4}/address")
    assert page.decode() == guest.world.host.addr4 + "\n"
    guest.mediated(1, "connect", f"{guest.world.web4}:80")


@needs("curl")
def test_curl_as_root(guest):
    argv = ["curl", "-sS", "--max-time", "20", "http://web.test/address", "-4"]
    assert guest.run(argv, user="root", check=True).stdout == guest.world.host.addr4 + "\n"
    guest.mediated(1, "connect", f"{guest.world.web4}:80")


@needs("curl")
@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("http://198.51.100.10:9/", 7),  # refused
        ("http://198.51.100.98/", 7),  # unreachable
        ("http://198.51.100.99/", 28),  # never answered
        ("http://nothing.test/", 6),
    ],
)
def test_curl_tells_failures_apart(guest, url, status):
    done = guest.run(["curl", "-sS", "--max-time", "1.5", url])
    assert done.returncode == status, done.stderr
    guest.mediated(1, "resolve" if status == 6 else "connect")


@needs("curl")
def test_curl_fetches_many_pages_at_once(guest):
    pages = 40
    argv = ["curl", "-sS", "-Z", "--parallel-immediate", "--parallel-max", "20", "--fail"]
    argv += ["-H", "Connection: close", "-o", "page-#1"]
    guest.run([*argv, f"http://{guest.world.web4}/large?[1-{pages}]"], check=True)
    files = list(guest.directory.glob("page-*"))
    assert len(files) == pages
    assert {hashlib.sha256(f.read_bytes()).hexdigest() for f in files} == {LARGE_SHA}
    guest.mediated(pages // 2, "connect", f"{guest.world.web4}:80")


@needs("curl")
def test_a_client_that_wants_fast_open_gets_its_page(guest):
    """TCP Fast Open (tcp(7)) would connect without connect(2): refused to a guest, and curl does without."""
    argv = ["curl", "-sS", "--tcp-fastopen", "--max-time", "20", "http://v4only.test/"]
    for _ in range(2):  # the second time there would be a cookie
        assert guest.run(argv, check=True).stdout == "hello from the world\n"
    guest.mediated(2, "connect", "198.51.100.11:80")


FAST = """
import socket, sys
with socket.socket() as server:
    server.bind(("", int(sys.argv[1])))
    server.setsockopt(socket.IPPROTO_TCP, 23, 5)  # TCP_FASTOPEN
    server.listen()
    print(server.getsockopt(socket.IPPROTO_TCP, 23), flush=True)
    for _ in range(2):
        with server.accept()[0] as client:
            client.sendall(client.recv(10))
"""


def test_a_server_that_offers_fast_open(guest):
    """To who comes by it and who does not."""
    world, port = guest.world, guest.port()
    with guest.popen([world.python, "-c", FAST, str(port)], listens=port) as server:
        with world.peer.connect(world.host.addr4, port) as sock:
            sock.sendall(b"as usual")
            assert sock.recv(10) == b"as usual"
        with world.peer.socket() as sock:
            sock.settimeout(None)
            sock.sendto(b"at once", 0x20000000, (world.host.addr4, port))  # MSG_FASTOPEN
            sock.settimeout(20)
            assert sock.recv(10) == b"at once"
        assert server.wait() == 0
        assert server.stdout == "5\n"
    guest.mediated(1, "listen", f":{port}")


@needs("curl")
@pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
def test_curl_at_a_unix_socket_of_the_host(guest):
    path = guest.directory / "web.sock"
    served = guest.world.host.popen(
        [sys.executable, "-c", WEB, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert served.stdout.readline() == "ready\n"
        argv = ["curl", "-sS", "--max-time", "20", "--unix-socket", str(path), "http://web/page"]
        refused = guest.run(argv)
        rule = ("--allow", f"unix:{path}")
        assert guest.run(argv, options=rule, check=True).stdout == "page"
        assert (refused.returncode == 0) == guest.native
    finally:
        stop(served)


WEB = """
import os, socketserver, sys
class Web(socketserver.StreamRequestHandler):
    def handle(self):
        path = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + path[1:].encode())
with socketserver.UnixStreamServer(sys.argv[1], Web) as server:
    os.chmod(sys.argv[1], 0o666)
    print("ready", flush=True)
    server.serve_forever()
"""


@needs("wrk")
@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "closed"])
def test_wrk_has_no_errors(guest, kept):
    """By a name; with connections that are kept, and with a new one for each request."""
    header = [] if kept else ["-H", "Connection: close"]
    argv = ["wrk", "-t1", "-c4", "-d1s", *header, "http://v4only.test/"]
    said = guest.run(argv, check=True, timeout=30).stdout
    assert int(re.search(r"(\d+) requests in", said)[1]) > 10
    assert "Socket errors" not in said
    assert "Non-2xx" not in said
    guest.mediated(4 if kept else 10, "connect", "198.51.100.11:80")
