"""The host's loopback and the guest's own, and what of the latter is published."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .attempts import LOOPS, Service, attempt, attempts, guests, holding
from .observing import addresses

if TYPE_CHECKING:
    from world.runner import Guest

    from .conftest import Site


@pytest.mark.parametrize("loop", LOOPS)
def test_services_on_the_hosts_loopback(guest: Guest, site: Site, loop: str) -> None:
    """Natively reached; in a guest, loopback is its own, and nobody listens there."""
    with Service(guest.world.host.listen(loop)) as service:
        hosts = [loop, "0.0.0.0", "127.0.0.77"] if loop == "127.0.0.1" else [loop, "::"]
        lines = [f"connect {host} {service.port} read" for host in hosts]
        found = attempts(guest, site, *lines, f"connect {loop} {service.port} nonblocking")
        if guest.native:
            assert found[0] == "service"
        else:
            refused = ["EINPROGRESS", "IN|OUT|ERR|HUP|RDHUP", "ECONNREFUSED"]
            refused[1] = found[-1][1]  # how much of it poll was asked for
            assert found == ["ECONNREFUSED"] * len(hosts) + [refused]
            assert service.clients == []


@guests
def test_mapped_loopback_is_loopback(guest: Guest, site: Site) -> None:
    with Service(guest.world.host.listen("127.0.0.1")) as service:
        assert attempt(guest, site, "connect", "::ffff:127.0.0.1", str(service.port)) in (
            "ECONNREFUSED",
            "EACCES",
        )
        assert service.clients == []


@guests
@pytest.mark.parametrize("loop", LOOPS)
def test_a_rule_opens_one_port_of_the_hosts_loopback(guest: Guest, site: Site, loop: str) -> None:
    with (
        Service(guest.world.host.listen(loop)) as opened,
        Service(guest.world.host.listen(loop)) as other,
    ):
        found = attempts(
            guest,
            site,
            f"connect {loop} {opened.port} read",
            f"connect {loop} {other.port} read",
            f"connect {site.world.web4} 80",
            options=("--allow", f"loopback:{opened.port}"),
        )
        assert found[0] == "service"
        assert found[1] in ("ECONNREFUSED", "EACCES")
        assert found[2] == "EACCES"
        assert other.clients == []


@guests
def test_the_guests_own_loopback_comes_first(guest: Guest, site: Site) -> None:
    """With the host's port allowed, a listener of the guest on the same port is the one reached."""
    with Service(guest.world.host.listen("127.0.0.1")) as service:
        script = f"""
import socket
listener = socket.create_server(("127.0.0.1", {service.port}))
client = socket.create_connection(("127.0.0.1", {service.port}))
conn, _ = listener.accept()
conn.sendall(b"own")
print(client.recv(10).decode())
"""
        argv = [guest.world.python, "-c", script]
        done = guest.run(argv, options=("--allow", f"loopback:{service.port}"))
        assert done.stdout == "own\n", done.stderr
        assert service.clients == []


def test_host_services_by_the_hosts_address(guest: Guest, site: Site) -> None:
    """A service the host offers to the world is offered to its guests."""
    with Service(guest.world.host.listen("0.0.0.0")) as service:
        words = ("connect", guest.world.host.addr4, str(service.port), "read")
        assert attempt(guest, site, *words) == "service"


@guests
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("loop", LOOPS)
def test_publish_exposes_the_guests_loopback(
    guest: Guest, site: Site, loop: str, version: int
) -> None:
    """By every address of the host: a client that tries IPv6 first is no worse off."""
    addresses(site, version)
    host, port = site.world.host, guest.port()
    words = ("serve", loop, str(port), "published")
    address = host.addr4 if version == 4 else host.addr6
    with (
        holding(guest, site, *words, options=("--publish", str(port))),
        site.world.peer.connect(address, port) as sock,
    ):
        assert sock.recv(100) == b"published"


@guests
def test_publish_under_another_port_and_address(guest: Guest, site: Site) -> None:
    outer, inner = guest.port(), guest.port()
    world = site.world
    words = ("serve", "127.0.0.1", str(inner), "published")
    option = ("--publish", f"{world.host.addr4}:{outer}:{inner}")
    with holding(guest, site, *words, options=option):
        with world.peer.connect(world.host.addr4, outer) as sock:
            assert sock.recv(100) == b"published"
        with pytest.raises(ConnectionRefusedError):
            world.host.connect("127.0.0.1", outer)
        with pytest.raises(ConnectionRefusedError):
            world.peer.connect(world.host.addr4, inner)


@guests
def test_publish_to_the_hosts_loopback_only(guest: Guest, site: Site) -> None:
    port = guest.port()
    words = ("serve", "127.0.0.1", str(port), "published")
    with holding(guest, site, *words, options=("--publish", f"127.0.0.1:{port}")):
        with site.world.host.connect("127.0.0.1", port) as sock:
            assert sock.recv(100) == b"published"
        with pytest.raises(ConnectionRefusedError):
            site.world.peer.connect(site.world.host.addr4, port)


@guests
def test_without_publish_the_guests_loopback_is_its_own(guest: Guest, site: Site) -> None:
    port = guest.port()
    with holding(guest, site, "serve", "127.0.0.1", str(port)):
        for address in (site.world.host.addr4, "127.0.0.1"):
            with pytest.raises(ConnectionRefusedError):
                site.world.host.connect(address, port)
