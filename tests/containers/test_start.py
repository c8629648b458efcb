"""What our step costs the start of a container, beside the engine's own runtime: `xensock bench containers`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from engines import CONF, OWN

if TYPE_CHECKING:
    from engines import Engine

RUNS = 9
STORAGE = """
[storage]
driver = "vfs"
graphroot = "{directory}/data"
runroot = "{directory}/run"
"""


@pytest.mark.parametrize("engine", ["docker", "podman"], indirect=True)
def test_a_start_is_hardly_longer(engine: Engine, record_property) -> None:
    row = f"container.startup.{engine.kind}"
    argv = [*OWN, "bench", "containers", "--json", f"--runs={RUNS}", f"--only={row}"]
    env = {"DOCKER_HOST": f"unix://{engine.directory}/s"}
    if engine.kind == "podman":
        # What a person has in files of the system.
        conf, storage = engine.directory / "bench.conf", engine.directory / "storage.conf"
        conf.write_text(f'{CONF}runtime = "{engine.oci}"\n')
        storage.write_text(STORAGE.format(directory=engine.directory))
        env = {"CONTAINERS_CONF": str(conf), "CONTAINERS_STORAGE_CONF": str(storage)}
        argv = [*engine.command[: engine.command.index("podman")], *argv]
    host = engine.world.host
    done = host.run(argv, env=host.environment(None, env), timeout=120)
    assert done.returncode == 0, (done.stderr, engine.said())
    (found,) = json.loads(done.stdout)["results"]
    assert (found["name"], found["unit"], found["runs"]) == (row, "ms", RUNS)
    assert found["ratio"] == pytest.approx(found["native"] / found["ours"], rel=1e-3)
    print(json.dumps(found))
    record_property("added_ms", round(found["ours"] - found["native"], 1))
    assert found["ratio"] > 1 / 1.5, found
    assert "xensock-bench" not in engine("images").stdout
