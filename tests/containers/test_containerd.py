"""containerd itself, as Kubernetes uses it: a runtime of its shim for runc, by the path of a binary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engines import RUNTIME

from world.processes import needs
from xensock.backend import oci

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from engines import Engine

pytestmark = pytest.mark.parametrize("engine", ["docker"], indirect=True)
WRAPPER = """#!/bin/sh
exec {runtime} --xensock-backend={directory}/containers.sock "$@"
"""
GET = ("wget", "-q", "-O", "-", "http://v4only.test/address")


class Ctr:
    """containerd's own command, with our runtime as its shim's binary."""

    image = "docker.io/library/box:latest"

    def __init__(self, engine: Engine) -> None:
        directory = engine.directory
        binary = directory / "runtime"
        binary.write_text(WRAPPER.format(runtime=RUNTIME, directory=directory))
        binary.chmod(0o755)
        self._engine = engine
        self._run = ["run", f"--runc-binary={binary}"]

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        where = ["-a", f"{self._engine.directory}/exec/containerd/containerd.sock", "-n", "tests"]
        done = self._engine.world.host.run(["ctr", *where, *words], timeout=60)
        assert not check or done.returncode == 0, (words, done.stderr, self._engine.said())
        return done

    def run(
        self, name: str, *program: str, options: tuple[str, ...] = (), check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        rest = () if "--detach" in options else ("--rm",)
        return self(*self._run, *rest, *options, self.image, name, *program, check=check)


@pytest.fixture
def ctr(engine: Engine) -> Iterator[Ctr]:
    made = Ctr(engine)
    engine("save", "-o", f"{engine.directory}/box.tar", "box")
    made("images", "import", f"{engine.directory}/box.tar")
    yield made
    made("images", "rm", made.image)


@needs("ctr")
def test_a_container_of_containerd(engine: Engine, ctr: Ctr) -> None:
    done = ctr.run("one", *GET)
    assert done.stdout == f"{engine.world.host.addr4}\n"
    assert engine.recorded("connect", "198.51.100.11:80")["name"] == "v4only.test"
    label = ("--annotation=xensock.allow=web.test:80",)
    done = ctr.run("two", *GET, options=label, check=False)
    assert "bad address" in done.stderr


@needs("ctr")
def test_what_is_executed_in_one(engine: Engine, ctr: Ctr) -> None:
    """A task in the background, and a process that comes into it: under the same rules, by name and by number."""
    label = ("--annotation=xensock.allow=v4only.test:80",)
    ctr.run("long", "sleep", "1000", options=("--detach", *label))
    try:
        enter = ("tasks", "exec", "--exec-id")
        done = ctr(*enter, "fine", "long", *GET)
        assert done.stdout == f"{engine.world.host.addr4}\n"
        done = ctr(*enter, "not", "long", "wget", "-O", "-", "http://198.51.100.12/", check=False)
        assert "Permission denied" in done.stderr
        assert engine.recorded("connect", "198.51.100.12:80")["decision"] == "deny"
    finally:
        ctr("tasks", "kill", "--signal=KILL", "long")
        ctr("tasks", "delete", "long", check=False)
        ctr("containers", "delete", "long")


@needs("ctr")
def test_containers_of_a_pod(engine: Engine, ctr: Ctr) -> None:
    """They are given one network, with an interface, as pods are: they have no part in it, and the host's is theirs."""
    given = f"--with-ns=network:/run/netns/{engine.world.peer.name}"
    done = ctr.run("refused", "true", options=(given,), check=False)
    assert done.returncode != 0
    assert "it has a network of the engine's" in done.stderr
    for number, kind in enumerate((f"{oci.PODS[0]}=container", f"{oci.NETWORK}=none")):
        options = (given, f"--annotation={kind}")
        done = ctr.run(f"seen{number}", "ls", "/sys/class/net", options=options)
        assert "lo" in done.stdout.split()
        done = ctr.run(f"client{number}", *GET, options=options)
        assert done.stdout == f"{engine.world.host.addr4}\n"
    done = ctr.run("odd", "true", options=(given, f"--annotation={oci.NETWORK}=all"), check=False)
    assert "write none" in done.stderr
