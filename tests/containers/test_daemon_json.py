"""What `xensock install --docker` writes is what a dockerd reads (dockerd(8), `runtimes`)."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from world.processes import eventually
from xensock.backend import installing

if TYPE_CHECKING:
    from engines import Engine


@pytest.mark.parametrize("engine", ["docker"], indirect=True)
def test_a_daemon_has_the_runtime_and_has_it_no_more(engine: Engine) -> None:
    file = engine.directory / "daemon.json"
    places = replace(installing.Places.here(), docker=file)
    own = file.read_bytes()
    (daemon,) = [
        int(each.name)
        for each in Path("/proc").glob("[0-9]*")
        if _command(each).startswith(f"dockerd\0--config-file={file}\0")
    ]

    def reads(text: bytes) -> None:
        file.write_bytes(text)
        wanted = json.loads(text)["runtimes"]

        def has() -> bool:
            os.kill(daemon, signal.SIGHUP)  # it reads its file again
            shown = json.loads(engine("info", "--format={{json .Runtimes}}").stdout)
            ours = {name: each for name, each in shown.items() if "xensock" in each["path"]}
            return {name: each["path"] for name, each in ours.items()} == {
                name: each["path"] for name, each in wanted.items()
            }

        eventually(has, 30, "the runtimes", 0.2)

    try:
        installed = installing.docker(places).after
        assert installed is not None
        assert json.loads(installed)["runtimes"]["xensock"] == {"path": installing.runtime()}
        assert "mortal" in json.loads(installed)["runtimes"]
        reads(installed)
        removed = installing.without_docker(places).after
        assert removed is not None
        assert list(json.loads(removed)["runtimes"]) == ["mortal"]
        reads(removed)
    finally:
        reads(own)


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
