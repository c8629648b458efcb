"""A backend that is killed: what its containers keep, what they are refused from then on, and how they come back."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import engines
import pytest

from world.processes import eventually, stop

if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import Iterator

    from engines import Engine

pytestmark = pytest.mark.parametrize("engine", ["podman", "rootless"], indirect=True)

OPEN = 20  # connections of each container
ENDED = b"-- ended\n"
GET = "wget -O - http://198.51.100.11/address"  # by number: nobody is asked for a name


@contextmanager
def mortal(engine: Engine, command: list[str]) -> Iterator[tuple[Engine, subprocess.Popen]]:
    """The same engine with a backend of its own, which the test may kill."""
    directory = engine.directory / "mortal"
    directory.mkdir(exist_ok=True)
    if engine.user is not None:
        engine.world.user.own(directory)
    runtime = [each for each in engine.runtime if "xensock-backend=" not in each]
    runtime.append(f"--runtime-flag=xensock-backend={directory}/containers.sock")
    other = replace(engine, directory=directory, runtime=runtime, made=[])
    (directory / "backend.log").unlink(
        missing_ok=True
    )  # its predecessor's: whether it listens is read there
    process = engines.backend(engine.world, directory, engine.user, command)
    try:
        yield other, process
    finally:
        other.remove()
        stop(process)


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
    connection.sendall(f"{script}; echo '{ENDED.decode().strip()}'\n".encode())
    got = b""
    while not got.endswith(ENDED):
        more = connection.recv(65536)
        assert more, got
        got += more
    return got.removesuffix(ENDED)


def test_a_backend_that_is_killed(engine: Engine, request: pytest.FixtureRequest) -> None:
    command = engines.OWN if engine.user is None else request.getfixturevalue("xensock")
    with mortal(engine, command) as (ours, backend):
        ports = [ours.world.host.free_port() for _ in range(2)]
        for port in ports:
            ours.start(f"box{port}", "box", "nc", "-ll", "-p", str(port), "-e", "/bin/sh")
        held = [shell(ours, port) for port in ports for _ in range(OPEN)]
        try:
            for each in held:
                assert told(each, GET + " 2>/dev/null") == f"{ours.world.host.addr4}\n".encode()
            backend.kill()
            backend.wait()
            # What is open stays open, both ways and byte for byte.
            for each in held:
                text = os.urandom(65536).hex()
                lines = "\n".join(text[at : at + 1024] for at in range(0, len(text), 1024))
                assert told(each, f"cat <<'EOF'\n{lines}\nEOF\ntrue").decode() == lines + "\n"
            # Listeners are the host's sockets and go on.
            for port in ports:
                late = shell(ours, port)
                held.append(late)
                assert told(late, "echo late") == b"late\n"
            # No call is let through, and none waits without end.
            for each in held:
                said = told(each, GET + " 2>&1")
                assert os.strerror(errno.ENOSYS).encode() in said, said
            done = ours.run("box", "true", check=False)
            assert done.returncode != 0
        finally:
            for each in held:
                each.close()
        old = list(ours.made)
        with mortal(engine, command) as (again, _):
            done = again.exec(old[0], "true", check=False)
            assert done.returncode != 0
            assert "restart it" in done.stderr
            ours.remove()
            done = again.run("box", "wget", "-q", "-O", "-", "http://198.51.100.11/address")
            assert done.stdout == f"{again.world.host.addr4}\n"
