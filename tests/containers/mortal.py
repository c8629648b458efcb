"""A backend of a test's own, which it may kill, and containers that are a shell for each client."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import engines

from world.processes import eventually, stop

if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import Iterator

    from engines import Engine

ENDED = b"-- ended\n"


@contextmanager
def mortal(
    engine: Engine, command: list[str], *options: str
) -> Iterator[tuple[Engine, subprocess.Popen]]:
    """The same engine with a backend of its own, which the test may kill."""
    directory = engine.directory / "mortal"
    directory.mkdir(exist_ok=True)
    if engine.user is not None:
        engine.world.user.own(directory)
    runtime = [each for each in engine.runtime if "xensock-backend=" not in each]
    runtime.append(f"--runtime-flag=xensock-backend={directory}/containers.sock")
    if engine.kind == "docker":
        runtime = ["--runtime=mortal"]
    other = replace(engine, directory=directory, runtime=runtime, made=[])
    (directory / "backend.log").unlink(
        missing_ok=True
    )  # its predecessor's: whether it listens is read there
    process = engines.backend(engine.world, directory, engine.user, command, *options)
    try:
        yield other, process
    finally:
        other.remove()
        stop(process)


def python(program: Path, *words: object) -> tuple[list[str], list[str]]:
    """A Python program in a container of the image `machine`: the options, and the command."""
    places = sorted({"/usr", sys.base_prefix})
    options = [f"--volume={place}:{place}:ro" for place in places]
    options.append(f"--volume={program}:/{program.name}:ro")
    argv = [str(Path(sys.executable).resolve()), f"/{program.name}", *map(str, words)]
    return options, argv


def shell(engine: Engine, port: int) -> socket.socket:
    """A connection to a server that gives each client a shell in its container."""
    made: list[socket.socket] = []

    def connected() -> bool:
        try:
            made.append(engine.world.peer.connect(engine.world.host.addr4, port))
        except ConnectionRefusedError:
            return False
        return True

    eventually(connected, 30, f"port {port}")
    made[0].settimeout(30)
    return made[0]


def told(connection: socket.socket, script: str) -> bytes:
    """What a shell says to a line."""
    begin(connection, script)
    return rest(connection)


def begin(connection: socket.socket, script: str) -> None:
    """Have a shell begin with a line."""
    connection.sendall(f"{script}; echo '{ENDED.decode().strip()}'\n".encode())


def rest(connection: socket.socket) -> bytes:
    """What a shell goes on to say, until it has ended what it was told."""
    got = b""
    while not got.endswith(ENDED):
        more = connection.recv(65536)
        assert more, got
        got += more
    return got.removesuffix(ENDED)
