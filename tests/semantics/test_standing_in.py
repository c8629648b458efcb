"""A port of the guest's own while it calls that port of others: what stands for them there is not in the way."""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING

import pytest

from world.fixtures import only

from .attempts import Service

if TYPE_CHECKING:
    from world.runner import Guest

FAMILY = """
import socket, sys
def made(host):
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
"""
SERVER = f"""{FAMILY}
host, own, *calls = sys.argv[1:]
for far, port, when in zip(calls[::3], map(int, calls[1::3]), calls[2::3]):
    silent = "silent" in when
    with made(host) as server, made(far) as client:
        def call():
            client.setblocking(not silent)
            print(client.connect_ex((far, port)), end=" ")
        if "first" in when:
            call()
        server.bind((host, port))
        if "between" in when:
            call()
        server.listen()
        with socket.create_connection((own, port), 30), server.accept()[0] as sock:
            print(sock.getsockname()[1] == port, end=" ")
        if silent:
            print(client.connect_ex((far, port)))
        else:
            print(client.recv(100))
"""
RIVALS = f"""{FAMILY}
host, far, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
with made(host) as one, made(host) as other, made(far) as client:
    for each in (one, other):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        each.bind((host, port))
    client.setblocking(False)
    client.connect_ex((far, port))
    one.listen()
    try:
        other.listen()
    except OSError as error:
        print(error)
"""
ALLOWED = ("--allow", "public", "--allow", "listen:any")
WHEN = [f"{when} {how}" for when in ("first", "between") for how in ("answered", "silent")]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "203.0.113.10"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_destinations_port_is_listened_on(guest: Guest, host: str, version: int) -> None:
    """Whether the call came before bind or between that and listen, and was answered or waits."""
    world = guest.world
    four = version == 4
    here, silent = (world.peer.addr4, world.silent4) if four else (world.peer.addr6, world.silent6)
    calls: list[str] = []
    with contextlib.ExitStack() as services:
        for when in WHEN:
            port = world.peer.free_port()
            if "answered" in when:
                services.enter_context(Service(world.peer.listen("::", port)))
            calls += [silent if "silent" in when else here, str(port), when]
        own = world.host.addr6 if host == "::" else world.host.addr4
        argv = [world.python, "-c", SERVER, host, own, *calls]
        done = guest.run(argv, options=ALLOWED, timeout=60)
    assert done.stdout.splitlines() == ["0 True b'service'", "115 True 114"] * 2, done.stderr


@pytest.mark.parametrize("guest", only("relay", "ring"), indirect=True)
def test_a_destinations_port_is_listened_on_where_it_has_another_number_outside(
    guest: Guest,
) -> None:
    world = guest.world
    ports = [(guest.port(), guest.port()) for _ in WHEN]
    calls = itertools.chain.from_iterable(
        (world.silent4, str(inner), f"{when.split()[0]} silent")
        for (inner, _), when in zip(ports, WHEN, strict=True)
    )
    options = itertools.chain.from_iterable(("--publish", f"{b}:{a}") for a, b in ports)
    argv = [world.python, "-c", SERVER, "0.0.0.0", "127.0.0.1", *calls]
    done = guest.run(argv, options=(*ALLOWED, *options), timeout=60)
    assert done.stdout == "115 True 114\n" * len(WHEN), done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_who_listens_there_already_is_in_the_way(guest: Guest, host: str) -> None:
    world = guest.world
    argv = [world.python, "-c", RIVALS, host, world.silent4, str(guest.port())]
    done = guest.run(argv, options=ALLOWED, timeout=30)
    assert done.stdout == "[Errno 98] Address already in use\n", done.stderr
