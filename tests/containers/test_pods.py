"""Podman's pods: their containers are each a guest, with a network namespace of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from world.processes import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines import Engine

pytestmark = pytest.mark.parametrize("engine", ["podman", "rootless"], indirect=True)


@pytest.fixture
def pod(engine: Engine) -> Iterator[str]:
    """A pod, with a first container that holds it together."""
    options = engine.runtime_options()
    first = ("--infra-image=box", "--infra-command=/bin/sleep 1000")
    made = engine(*options, "pod", "create", "--name=shop", "--network=none", *first)
    yield "shop"
    engine(*options, "pod", "rm", "-f", "--time=0", "shop")
    engine.forget_pods(made.stdout.strip())


def test_containers_of_a_pod(engine: Engine, pod: str) -> None:
    port = engine.world.host.free_port()
    before = (*engine.runtime_options(), "run", *engine.run_options(), f"--pod={pod}")
    label = engine.labelled({"xensock.group": pod})
    serve = ("box", "httpd", "-f", "-p", str(port), "-h", "/www")
    engine(*before, "-d", "--name=web", *label, *serve)
    page = f"http://{engine.world.host.addr4}:{port}/page"
    got = ["curl", "-sS", "--max-time", "5", page]
    eventually(lambda: engine.world.peer.run(got).stdout == "from box\n", 20, "the server")

    def client(*argv: str) -> str:
        return engine(*before, "--rm", *label, "box", *argv, check=False).stdout

    get = ("wget", "-q", "-O", "-")
    assert client(*get, "http://v4only.test/address") == f"{engine.world.host.addr4}\n"
    assert client(*get, f"http://web:{port}/page") == "from box\n"
    # A loopback of its own, and no interface but those of any container.
    assert client(*get, f"http://127.0.0.1:{port}/page") == ""
    interfaces = ("ls", "/sys/class/net")
    assert client(*interfaces) == engine.run("box", *interfaces).stdout
