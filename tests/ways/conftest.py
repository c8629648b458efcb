"""What the attempts to get around a backend share: their programs compiled, and one way to run them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from semantics.attempts import Service
from world.fixtures import only
from world.namespaces import stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from world.internet import World
    from world.namespaces import Namespace
    from world.runner import Guest

HERE = Path(__file__).parent
CFLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread"]

everywhere = pytest.mark.parametrize(
    "guest", only("native", "direct", "relay", "ring"), indirect=True
)
"""Natively, which is the control, and in a guest over each data path."""

guests = pytest.mark.parametrize("guest", only("direct", "relay", "ring"), indirect=True)
between = pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
"""Where a guest may have unix sockets of others: with --backend it has none."""
beside = pytest.mark.parametrize("guest", only("native", "direct"), indirect=True)
"""Attempts at what only the direct data path has: sockets of the host in a guest."""


@pytest.fixture(scope="session")
def compiled(world: World) -> Callable[[str], Path]:
    """Compile compiled/NAME.c where the world's ordinary user may run it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    directory = world.directory / "ways"
    directory.mkdir()

    def build(name: str) -> Path:
        out = directory / name
        if not out.exists():
            argv = [compiler, *CFLAGS, str(HERE / "compiled" / f"{name}.c"), "-o", str(out)]
            done = subprocess.run(argv, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return out

    return build


def outcome(
    guest: Guest,
    argv: list[str],
    *,
    options: tuple[str, ...] = (),
    user: str | None = "xstest",
    **more: Any,
) -> dict[str, Any]:
    """What a program said, as one JSON object in its last line."""
    more.setdefault("timeout", 60)
    done = guest.run(argv, options=() if guest.native else options, user=user, **more)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class Echo:
    """A socket of the test's own that sends back each datagram, and keeps who sent them."""

    def __init__(self, where: Namespace, address: str) -> None:
        self._sock = where.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind((address, 0))
        self._sock.settimeout(None)
        self.port = int(self._sock.getsockname()[1])
        self.clients: list[Any] = []
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            data, client = self._sock.recvfrom(100)
            if data == self._end and client == self._sock.getsockname():
                return
            self.clients.append(client)
            self._sock.sendto(data, client)

    def __enter__(self) -> Echo:
        self._end = os.urandom(16)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.sendto(self._end, self._sock.getsockname())
        self._thread.join()
        self._sock.close()


SLEEPER = """
import ctypes, os, sys, time
room = ctypes.create_string_buffer(8)
print(ctypes.addressof(room), flush=True)
sys.stdin.read()
"""


@contextmanager
def sleeper(
    world: World, user: str | None, argv: list[str] | None = None
) -> Iterator[tuple[int, int]]:
    """A process outside that waits: its number, and an address in its memory. `argv`: what starts it."""
    with world.host.popen(
        argv or [world.python, "-c", SLEEPER],
        user=user,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            stop(process)


@contextmanager
def neighbour(guest: Guest, world: World, user: str | None) -> Iterator[tuple[int, int]]:
    """The same in another guest of the same user; natively one more outside. Its number is the host's."""
    argv = guest.command([world.python, "-c", SLEEPER, f"neighbour-{guest.port()}"], (), user)
    with sleeper(world, user, argv) as (pid, address):
        yield (pid if guest.native else _innermost(argv[-1])), address


def _innermost(argument: str) -> int:
    """The process with this last argument that is in the most PID namespaces: the guest's."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if path.read_bytes().endswith(f"\0{argument}\0".encode()):
                status = (path.parent / "status").read_text()
                depth = len(re.findall(r"^NSpid:(.*)$", status, re.M)[0].split())
                found.append((depth, int(path.parent.name)))
    return max(found)[1]


def _card(host: Namespace) -> str:
    """The interface of the host by which it reaches the world."""
    names = host.inside(socket.if_nameindex)
    return next(name for _, name in names if name != "lo")


@pytest.fixture(scope="session")
def tries(world: World) -> Path:
    """The directory of the attempts, where the world's ordinary user may read them."""
    return Path(
        shutil.copytree(
            HERE / "tries", world.directory / "tries", ignore=shutil.ignore_patterns("__*")
        )
    )


@pytest.fixture(scope="session")
def seen(world: World, tries: Path) -> Callable[..., dict[str, str]]:
    """What came of each attempt of a file over a data path, as a user; each is run once."""
    known: dict[tuple[str, str, str | None, tuple[str, ...]], dict[str, str]] = {}

    def run(
        guest: Guest, file: str, user: str | None, within: tuple[str, ...] = ()
    ) -> dict[str, str]:
        key = (guest.datapath, file, user, within)
        if key not in known:
            known[key] = _attempts(guest, world, tries / file, user, within)
        return known[key]

    return run


def _attempts(
    guest: Guest, world: World, file: Path, user: str | None, within: tuple[str, ...]
) -> dict[str, str]:
    """Run a file of attempts. Whatever a program says of itself, nobody may have been reached."""
    peer, host = world.peer, world.host
    with (
        Service(peer.listen(peer.addr4)) as refused,
        Service(peer.listen(peer.addr4)) as allowed,
        Service(host.listen("0.0.0.0")) as local,
        Service(host.listen("::1", local.port)) as local6,
        Echo(peer, peer.addr4) as refused_udp,
        Echo(peer, peer.addr4) as allowed_udp,
        Echo(host, "127.0.0.1") as local_udp,
        sleeper(world, user) as (other, address),
        neighbour(guest, world, user) as beside_it,
    ):
        port = guest.port()
        site = {
            "peer": peer.addr4,
            "host": host.addr4,
            "card": _card(host),
            "refused": refused.port,
            "allowed": allowed.port,
            "local": local.port,
            "refused_udp": refused_udp.port,
            "allowed_udp": allowed_udp.port,
            "local_udp": local_udp.port,
            "port": port,
            "other": other,
            "address": address,
            "neighbour": beside_it,
            "netns": f"/run/netns/{peer.name}",
        }
        rules = ("--deny", f"{peer.addr4}:{refused.port}", "--deny", "listen:any/tcp")
        rules += ("--deny", f"{peer.addr4}:{refused_udp.port}")
        argv = [*within, world.python, str(file)]
        env = {"WAYS": json.dumps(site), "PYTHONDONTWRITEBYTECODE": "1"}
        found = outcome(guest, argv, options=rules, user=user, env=env, timeout=100)
        if not guest.native:
            assert refused.clients == local.clients == local6.clients == []
            assert refused_udp.clients == local_udp.clients == []
    return found
