"""A static musl program: its own getaddrinfo(3), a TCP client and a small server."""

import pytest
from languages import musl_program

from world.internet import ECHO, LARGE
from world.namespaces import eventually, needs

pytestmark = needs("musl-gcc")


@pytest.fixture(scope="module")
def program(world):
    return musl_program(world)


def test_http_client_by_name(guest, program):
    argv = [program, "get", "v4only.test", "80"]
    assert guest.run([*argv, "/"], check=True).stdout == "hello from the world\n"
    assert guest.run([*argv, "/address"], check=True).stdout == guest.world.host.addr4 + "\n"
    page = guest.run([*argv, "/large"], check=True, text=False).stdout
    assert page == bytes(range(256)) * (LARGE // 256)
    guest.mediated(3, "connect", "198.51.100.11:80")
    guest.mediated(3, "resolve", "v4only.test")


@pytest.mark.parametrize("family", [4, 6])
def test_echo_with_half_close(guest, program, family):
    world = guest.world
    if family == 6 and not world.has_ipv6:
        pytest.skip("this host has no IPv6")
    far = world.web4 if family == 4 else world.web6
    near = world.host.addr4 if family == 4 else world.host.addr6
    for size in (0, 1, 3_000_000):
        done = guest.run([program, "echo", far, str(ECHO), str(size)], check=True)
        assert done.stdout == f"between {near} {far} same\n"
    guest.mediated(3, "connect", f":{ECHO}")


@pytest.mark.parametrize(
    ("host", "port", "said"),
    [
        ("198.51.100.10", "9", "connect: errno 111\n"),
        ("nothing.test", "80", "no such name\n"),
    ],
)
def test_failures_are_told_apart(guest, program, host, port, said):
    done = guest.run([program, "echo", host, port, "1"])
    assert (done.returncode, done.stdout) == (1, said)
    guest.mediated(1, "connect" if "errno" in said else "resolve", host)


def test_server(guest, program):
    world, port = guest.world, guest.port()
    argv = [program, "serve", world.host.addr4, str(port)]
    with guest.popen(argv, listens=port) as server:
        # Several clients held open at once, served by one poll(2).
        socks = [world.peer.connect(world.host.addr4, port) for _ in range(20)]
        try:
            for number, sock in enumerate(socks):
                sock.sendall(b"%d" % number)
            for number, sock in enumerate(socks):
                assert sock.recv(100) == b"%d" % number
                sock.shutdown(1)
                assert sock.recv(100) == b""
        finally:
            for sock in socks:
                sock.close()
        client = f"client {world.peer.addr4}\n"
        eventually(lambda: server.stdout == client * 20, 5, "the server's lines")
        assert server.process.poll() is None
    guest.mediated(1, "listen", f":{port}")


def test_names(guest, program):
    names = ["web.test", "v4only.test", "v6only.test", "alias.test", "intra", "nothing.test"]
    done = guest.run([program, "lookup", *names], check=True)
    web = "198.51.100.10 2001:db8:20::10"
    assert done.stdout.splitlines() == [
        *(web, "198.51.100.11", "2001:db8:20::11", web, "198.51.100.12", "no such name")
    ]
    guest.mediated(6, "resolve")
