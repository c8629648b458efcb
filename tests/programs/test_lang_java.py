"""Java from source: HttpClient, Socket, channels, names, interfaces; and a server."""

import hashlib

import pytest
from languages import java_program

from world.internet import ECHO, LARGE
from world.namespaces import needs

pytestmark = needs("java", "javac", "socat")  # starting from source needs the compiler

LARGE_PAGE = bytes(range(256)) * (LARGE // 256)


def command(guest, *words):
    # Small heaps start faster.
    source = java_program(guest.world)
    options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Xmx128m"]
    return ["java", *options, str(source), *map(str, words)]


def java(guest, *words):
    return guest.run(command(guest, *words), check=True, timeout=60).stdout.splitlines()


def got(page):
    return f"200 {len(page)} {hashlib.sha256(page).hexdigest()}"


def test_client(guest):
    world = guest.world
    urls = ["http://v4only.test/", "http://web.test/large", f"http://{world.web4}/address"]
    lines = java(guest, "client", world.web4, ECHO, *urls)
    assert lines == [
        got(b"hello from the world\n"),
        got(LARGE_PAGE),
        got(world.host.addr4.encode() + b"\n"),
        str(20 * LARGE),
        f"true from {world.host.addr4} to {world.web4} nodelay true",
        "there and back",
        "ConnectException: Connection refused",
        "SocketTimeoutException: Connect timed out",
        "UnknownHostException: nothing.test: Name or service not known",
    ]
    guest.mediated(3, "connect", ":80")
    guest.mediated(2, "connect", f":{ECHO}")
    guest.mediated(1, "resolve", "web.test")


def test_server(guest):
    world, port = guest.world, guest.port()
    argv = command(guest, "serve", world.host.addr4, port)
    with guest.popen(argv, listens=port, timeout=60):
        for size in (0, 1000, 2_000_000):
            argv = ["socat", "-t20", "-", f"TCP:{world.host.addr4}:{port}"]
            answer = world.peer.run(argv, input=b"x" * size, text=False, check=True).stdout
            assert answer == world.peer.addr4.encode() + b" " + b"x" * size
    guest.mediated(1, "listen", f":{port}")


def test_names(guest):
    names = ["web.test", "v4only.test", "alias.test", "intra", "many.test", "nothing.test"]
    web, four, alias, intra, many, nothing = java(guest, "names", *names)
    assert web == alias == "198.51.100.10 2001:db8:20:0:0:0:0:10"
    assert (four, intra, nothing) == ("198.51.100.11", "198.51.100.12", "no such name")
    assert len(set(many.split())) == 60
    guest.mediated(6, "resolve")


def test_interfaces(guest):
    lines = [line.split() for line in java(guest, "interfaces")]
    found = {name: (state, kind, addresses) for name, state, kind, _, *addresses in lines}
    assert found["lo"][:2] == ("up", "loopback")
    assert "127.0.0.1" in found["lo"][2]
    others = {name: one for name, one in found.items() if one[1] == "other"}
    assert others
    assert all(state == "up" for state, _, _ in others.values())
    # Programs that look for an address "of this machine" find one; the host's cards do not show.
    addresses = [address for one in others.values() for address in one[2]]
    assert any("." in address for address in addresses)
    assert (guest.world.host.addr4 in addresses) == guest.native


@pytest.mark.parametrize("only_ipv4", ["true", "false"])
def test_sockets_of_one_family(guest, only_ipv4):
    world = guest.world
    argv = command(guest, "client", world.web4, ECHO, "http://web.test/address")
    argv.insert(1, f"-Djava.net.preferIPv4Stack={only_ipv4}")
    argv.insert(2, f"-Djava.net.preferIPv6Addresses={'system' if only_ipv4 == 'true' else 'true'}")
    lines = guest.run(argv, check=True, timeout=60).stdout.splitlines()
    six = only_ipv4 == "false" and world.has_ipv6
    assert lines[0] == got(f"{world.host.addr6 if six else world.host.addr4}\n".encode())
    assert lines[2:4] == [
        f"true from {world.host.addr4} to {world.web4} nodelay true",
        "there and back",
    ]
    guest.mediated(1, "connect", f"{f'[{world.web6}]' if six else world.web4}:80")
