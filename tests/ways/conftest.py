"""What the attempts to get around a backend share: their programs compiled, and one way to run them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from world.fixtures import only

if TYPE_CHECKING:
    from collections.abc import Callable

    from world.internet import World
    from world.runner import Guest

HERE = Path(__file__).parent
CFLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread"]

everywhere = pytest.mark.parametrize(
    "guest", only("native", "direct", "relay", "ring"), indirect=True
)
"""Natively, which is the control, and in a guest over each data path."""

guests = pytest.mark.parametrize("guest", only("direct", "relay", "ring"), indirect=True)
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
