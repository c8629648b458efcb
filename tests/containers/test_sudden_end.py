"""A backend that is killed: what its containers keep, what they are refused from then on, and how they come back."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest
from mortal import mortal, shell, told

if TYPE_CHECKING:
    from engines import Engine

pytestmark = pytest.mark.parametrize("engine", ["podman", "rootless"], indirect=True)

OPEN = 20  # connections of each container
GET = "wget -O - http://198.51.100.11/address"  # by number: nobody is asked for a name


def test_a_backend_that_is_killed(engine: Engine, command: list[str]) -> None:
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
