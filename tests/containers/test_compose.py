"""The Compose example of the documents: three services, one of them published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from world.processes import eventually, needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines import Engine

EXAMPLE = Path(__file__).parents[2] / "docs" / "howto" / "compose"

pytestmark = pytest.mark.parametrize("engine", ["docker"], indirect=True)


@pytest.fixture
def port(engine: Engine) -> Iterator[int]:
    """The example, running; what `web` is reached at."""
    port = engine.world.host.free_port()
    folder = engine.directory / "shop"
    shutil.copytree(EXAMPLE, folder)
    env = {
        "DOCKER_HOST": f"unix://{engine.directory}/s",
        "PORT": str(port),
        **{f"{name}_IMAGE": "tools" for name in ("WEB", "APP", "DB")},
    }

    def compose(*words: str) -> None:
        done = engine.world.host.run(
            ["docker-compose", "--project-name=shop", *words],
            cwd=folder,
            env=engine.world.host.environment(None, env),
            timeout=120,
        )
        assert done.returncode == 0, (done.stdout, done.stderr, engine.said())

    try:
        compose("up", "--detach")
        yield port
    finally:
        compose("down", "--timeout=1")
        shutil.rmtree(folder)


@needs("docker-compose", "nginx", "redis-server", "redis-cli")
def test_only_web_is_reached(engine: Engine, port: int) -> None:
    peer, host = engine.world.peer, engine.world.host.addr4

    def visits() -> str:
        url = f"http://{host}:{port}/visits"
        return peer.run(["curl", "-sS", "--max-time", "5", url]).stdout

    first = eventually(lambda: (said := visits()).strip().isdigit() and said, 60, "the shop")
    assert int(visits()) == int(first) + 1
    # By name inside, and by no port of the host's from outside.
    connected = engine.records_of("connect", "240.88.0.1:6379")
    assert {call["name"] for call in connected} == {"db"}
    for inner in (8000, 6379, 80):
        with pytest.raises(ConnectionRefusedError):
            peer.connect(host, inner)
    # Nor does what has no need of the world reach it.
    done = engine.exec("shop_app_1", "wget", "-O", "-", "http://web.test/", check=False)
    assert "bad address" in done.stderr
