"""Static Go: no libc, Go's own resolver and poller; HTTP client and server."""

import hashlib
import threading

import pytest
from languages import go_program

from world.internet import ECHO, LARGE
from world.namespaces import needs

pytestmark = needs("go")

HELLO = b"hello from the world\n"
LARGE_PAGE = bytes(range(256)) * (LARGE // 256)


@pytest.fixture(scope="module")
def program(world):
    return go_program(world)


def got(page, status=200):
    return f"{status} {len(page)} {hashlib.sha256(page).hexdigest()}"


def test_http_client(guest, program):
    urls = ["http://v4only.test/", "http://web.test/large", f"http://{guest.world.web4}/address"]
    done = guest.run([program, "get", *urls, "http://v4only.test/absent"], check=True)
    lines = done.stdout.splitlines()
    address = guest.world.host.addr4.encode() + b"\n"
    assert lines[:3] == [got(HELLO), got(LARGE_PAGE), got(address)]
    assert lines[3].startswith("404 ")
    guest.mediated(3, "connect", ":80")
    guest.mediated(1, "connect", "198.51.100.11:80")
    guest.mediated(1, "resolve", "web.test")


def test_errors_are_told_apart(guest, program):
    urls = ["http://198.51.100.10:9/", "http://nothing.test/"]
    done = guest.run([program, "get", *urls], check=True)
    assert done.stdout.splitlines() == ["errno 111", "no such name"]
    guest.mediated(1, "connect", ":9")


def test_many_connections_at_once(guest, program):
    done = guest.run([program, "many", f"http://{guest.world.web4}/large", "50"], check=True)
    assert done.stdout == "50\n"
    guest.mediated(50, "connect", f"{guest.world.web4}:80")


@pytest.mark.parametrize("family", [4, 6])
def test_echo_with_half_close(guest, program, family):
    if family == 6 and not guest.world.has_ipv6:
        pytest.skip("this host has no IPv6")
    world = guest.world
    far = f"{world.web4}:{ECHO}" if family == 4 else f"[{world.web6}]:{ECHO}"
    near = world.host.addr4 if family == 4 else world.host.addr6
    done = guest.run([program, "echo", far], check=True)
    assert done.stdout == f"true from {near} to {far}\n"
    guest.mediated(1, "connect", far)


def curl(guest, url, *more):
    argv = ["curl", "-sS", "--fail", "--max-time", "20", *more, url]
    return guest.world.peer.run(argv, check=True).stdout


@pytest.mark.parametrize("address", ["specific", "wildcard"])
def test_http_server(guest, program, address):
    port, host = guest.port(), guest.world.host
    listen = f"{host.addr4 if address == 'specific' else ''}:{port}"
    with guest.popen([program, "serve", listen], listens=port):
        assert curl(guest, f"http://{host.addr4}:{port}/") == guest.world.peer.addr4 + "\n"
        if address == "wildcard" and guest.world.has_ipv6:
            url = f"http://[{host.addr6}]:{port}/"
            assert curl(guest, url) == guest.world.peer.addr6 + "\n"
        body = "x" * 300_000
        (guest.directory / "body").write_text(body)
        post = curl(guest, f"http://{host.addr4}:{port}/", "-d", f"@{guest.directory}/body")
        assert post == body
        sizes: list[str] = []
        url = f"http://{host.addr4}:{port}/large"
        take = ("-o", "/dev/null", "-w", "%{size_download}")
        threads = [
            threading.Thread(target=lambda: sizes.append(curl(guest, url, *take))) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sizes == [str(1 << 20)] * 8
    guest.mediated(1, "listen", f":{port}")


def test_names_by_its_own_resolver(guest, program):
    names = ["web.test", "v4only.test", "v6only.test", "alias.test", "intra", "nothing.test"]
    done = guest.run([program, "lookup", *names, "many.test"], check=True)
    *lines, many = done.stdout.splitlines()
    web = "198.51.100.10 2001:db8:20::10"
    assert lines == [
        *(web, "198.51.100.11", "2001:db8:20::11", web, "198.51.100.12", "no such name")
    ]
    assert len(set(many.split())) == 60  # truncated over UDP, so asked again over TCP
    guest.mediated(7, "resolve")
