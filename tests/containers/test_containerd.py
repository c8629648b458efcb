"""containerd itself, as Kubernetes uses it: a runtime of its shim for runc, by the path of a binary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engines import RUNTIME

from world.processes import needs

if TYPE_CHECKING:
    import subprocess

    from engines import Engine

pytestmark = pytest.mark.parametrize("engine", ["docker"], indirect=True)
WRAPPER = """#!/bin/sh
exec {runtime} --xensock-backend={directory}/containers.sock "$@"
"""


@needs("ctr")
def test_a_container_of_containerd(engine: Engine) -> None:
    directory = engine.directory
    binary = directory / "runtime"
    binary.write_text(WRAPPER.format(runtime=RUNTIME, directory=directory))
    binary.chmod(0o755)

    def ctr(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        where = ["-a", f"{directory}/exec/containerd/containerd.sock", "-n", "tests"]
        done = engine.world.host.run(["ctr", *where, *words], timeout=60)
        assert not check or done.returncode == 0, (words, done.stderr, engine.said())
        return done

    engine("save", "-o", f"{directory}/box.tar", "box")
    ctr("images", "import", f"{directory}/box.tar")
    image = "docker.io/library/box:latest"
    run = ["run", "--rm", f"--runc-binary={binary}"]
    get = ["wget", "-q", "-O", "-", "http://v4only.test/address"]
    try:
        done = ctr(*run, image, "one", *get)
        assert done.stdout == f"{engine.world.host.addr4}\n"
        assert engine.recorded("connect", "198.51.100.11:80")["name"] == "v4only.test"
        label = ["--annotation=xensock.allow=web.test:80"]
        done = ctr(*run, *label, image, "two", *get, check=False)
        assert "bad address" in done.stderr
    finally:
        ctr("images", "rm", image)
