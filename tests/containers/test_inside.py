"""`xensock run` within an ordinary container of an engine: its default profile refuses what a guest needs, which is
said with options of the engine; with just these it works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import xensock

if TYPE_CHECKING:
    import subprocess

    from engines import Engine

SOURCE = Path(xensock.__file__).parents[1]
VENV = Path(sys.prefix)
MACHINE = ["/usr", "/etc/alternatives", str(SOURCE), str(VENV)]
PROGRAM = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname())
    print("served", server.accept()[1][0])
"""
OPTION = re.compile(r"(--(?:security-opt|cap-add))[ =]([\w:=]+)")
FOREIGN = {"docker": "unmask", "podman": "systempaths"}  # the other engine's word for it

pytestmark = pytest.mark.parametrize("engine", ["docker", "podman"], indirect=True)
USERS = pytest.mark.parametrize("uid", [0, 65534])


def within(
    engine: Engine, uid: int, options: list[str], *argv: str
) -> subprocess.CompletedProcess[str]:
    """This machine's own xensock in a container of the engine's runtime."""
    mounts = [word for path in MACHINE for word in ("-v", f"{path}:{path}:ro")]
    command = [sys.executable, "-m", "xensock", *argv]
    words = [*mounts, f"--user={uid}", *options, "machine", *command]
    return engine.plain.run(*words, check=False)


@USERS
def test_the_remedy_for_a_default_profile(engine: Engine, uid: int) -> None:
    """Followed until it works, as a person would: at most twice, as there are two kinds of refusals."""
    options: list[str] = []
    for _ in range(3):
        done = within(engine, uid, options, "run", "--", sys.executable, "-c", PROGRAM)
        if done.returncode == 0:
            break
        assert done.returncode == 125, done.stderr
        assert re.search("^cause: .*(container|seccomp filter)", done.stderr, re.M), done.stderr
        hint = next(line for line in done.stderr.splitlines() if line.startswith("hint: "))
        told = ["=".join(pair) for pair in OPTION.findall(hint)]
        told = [option for option in told if FOREIGN[engine.kind] not in option]
        assert set(told) - set(options), done.stderr
        options = [*dict.fromkeys([*options, *told])]
    assert options, "the default profile let it run"
    assert done.stdout == "served 127.0.0.1\n"
