"""Ports of the host are everybody's: guests compete for them with each other and with the host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from world.fixtures import only
from world.namespaces import eventually

from .attempts import Service, attempt, guests, holding

if TYPE_CHECKING:
    from world.runner import Guest

    from .conftest import Site


@guests
@pytest.mark.parametrize("how", ["", "reuseport"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "203.0.113.10"])
def test_two_guests_cannot_share_a_port(guest: Guest, site: Site, host: str, how: str) -> None:
    port = guest.port()
    words = ("listen", host, str(port), how)
    with holding(guest, site, *words) as (_, first):
        assert first == "ok"
        assert attempt(guest, site, *words) == "EADDRINUSE"
    with holding(guest, site, *words) as (_, first):
        assert first == "ok"


@guests
@pytest.mark.parametrize("how", ["", "reuseport"])
def test_a_port_of_the_host_is_taken(guest: Guest, site: Site, how: str) -> None:
    with Service(guest.world.host.listen("0.0.0.0")) as service:
        assert attempt(guest, site, "listen", "0.0.0.0", str(service.port), how) == "EADDRINUSE"


@guests
def test_each_guest_has_its_own_loopback_ports(guest: Guest, site: Site) -> None:
    port = str(guest.port())
    words = ("serve", "127.0.0.1", port)
    with (
        holding(guest, site, *words, "one") as (_, first),
        holding(guest, site, *words, "two") as (_, second),
    ):
        assert (first, second) == ("ok", "ok")
        assert attempt(guest, site, "connect", "127.0.0.1", port) == "ECONNREFUSED"


def test_a_guests_listener_is_the_hosts(guest: Guest, site: Site) -> None:
    """The world, the host, and another guest reach it by the host's address."""
    port = guest.port()
    with holding(guest, site, "serve", "0.0.0.0", str(port), "guest") as (_, first):
        assert first == "ok"
        for space in (site.world.peer, site.world.host):
            with space.connect(site.world.host.addr4, port) as sock:
                assert sock.recv(100) == b"guest"
        words = ("connect", site.world.host.addr4, str(port), "read")
        assert attempt(guest, site, *words) == "guest"


@pytest.mark.parametrize("far", ["web4", "web6"])
def test_a_listener_at_every_address_is_not_at_those_of_others(guest: Guest, far: str) -> None:
    """Who listens on port 80 calls another host's port 80 all the same."""
    script = """
import socket, sys
host, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
with socket.create_server(("", port), family=family), socket.socket(family) as client:
    print(client.connect_ex((host, port)))
    with socket.create_connection((sys.argv[3], port), 30) as own:
        print(own.getpeername()[0] == sys.argv[3])
"""
    world = guest.world
    here = world.host.addr4 if far == "web4" else world.host.addr6
    argv = [world.python, "-c", script, getattr(world, far), str(guest.port()), here]
    done = guest.run(argv, options=("--allow", "public", "--allow", "listen:any"), check=True)
    assert done.stdout == "111\nTrue\n"


def test_nobody_answers_on_a_port_that_is_only_bound_or_closed(guest: Guest) -> None:
    """Nor does who tried in vain keep it from being listened on."""
    script = """
import errno, select, socket, sys
host = sys.argv[1]
for turn in range(20):
    with socket.socket() as server, socket.socket() as early:
        server.bind((host, 0))
        early.setblocking(False)
        early.connect_ex(server.getsockname())
        select.select([], [early], [], 30)
        assert early.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        server.listen()
        name = server.getsockname()
        socket.create_connection(name, 30).close()
    with socket.socket() as late:
        assert late.connect_ex(name) == errno.ECONNREFUSED
print("well")
"""
    argv = [guest.world.python, "-c", script, guest.world.host.addr4]
    done = guest.run(argv, check=True)
    assert done.stdout == "well\n"


@pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
@pytest.mark.parametrize("chosen", [True, False])
def test_a_listener_that_is_shut_is_refused_and_listens_again(
    guest: Guest, site: Site, chosen: bool
) -> None:
    """Natively and on the direct path at once, over relay a moment later."""
    script = """
import socket, sys
with socket.socket() as server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that ended are in the way
    server.bind(("0.0.0.0", int(sys.argv[1])))
    for turn in range(3):
        server.listen()
        print(server.getsockname()[1], flush=True)
        server.accept()[0].close()
        server.shutdown(socket.SHUT_RDWR)
        print("shut", flush=True)
        sys.stdin.readline()
"""
    peer, host = site.world.peer, site.world.host.addr4
    argv = [guest.world.python, "-c", script, str(guest.port() if chosen else 0)]
    read_end, write_end = os.pipe()
    running = guest.popen(argv, stdin=read_end)
    os.close(read_end)

    def refused(port: int) -> bool:
        try:
            peer.connect(host, port).close()
        except ConnectionRefusedError:
            return True
        return False

    with os.fdopen(write_end, "w") as words:
        for turn in range(3):
            eventually(lambda n=2 * turn: len(running.stdout.split()) > n, 15, "a port")
            port = int(running.stdout.split()[2 * turn])
            peer.connect(host, port).close()
            eventually(lambda n=2 * turn + 1: len(running.stdout.split()) > n, 15, "shutdown")
            eventually(lambda n=port: refused(n), 15, "a refusal")
            words.write("on\n")
            words.flush()
    assert running.wait(15) == 0, running.stderr


def test_a_closed_listeners_port_is_the_guests_again_at_once(guest: Guest) -> None:
    """Whichever of its addresses it was bound to, whether it listened or not, and although others hear of the close a
    moment late."""
    script = """
import itertools, socket, sys
failed = []
for turn, listens, host in itertools.product(range(150), (True, False), ("::", sys.argv[1], "0.0.0.0")):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, listens)
        try:
            sock.bind((host, int(sys.argv[2])))
            if listens:
                sock.listen()
        except OSError as error:
            failed.append((turn, host, listens, str(error)))
print(failed)
"""
    host, port = guest.world.host.addr4, str(guest.port())
    done = guest.run([guest.world.python, "-c", script, host, port], timeout=100)
    assert done.stdout == "[]\n", done.stderr


@guests
def test_a_published_port_is_the_guests_again_at_once(guest: Guest) -> None:
    """Two faces outside, and a listener on loopback that comes and goes."""
    script = """
import socket, sys
failed = []
for turn in range(100):
    try:
        socket.create_server(("127.0.0.1", int(sys.argv[1]))).close()
    except OSError as error:
        failed.append((turn, str(error)))
print(failed)
"""
    port, one, other = guest.port(), guest.port(), guest.port()
    options = ["--publish", f"{one}:{port}", "--publish", f"{other}:{port}"]
    argv = [guest.world.python, "-c", script, str(port)]
    done = guest.run(argv, options=options, timeout=100)
    assert done.stdout == "[]\n", done.stderr
