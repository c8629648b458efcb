"""The shop of the documents, as a Compose file and as Podman's pods: three services, one of them published."""

from __future__ import annotations

import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engines import CONF

from world.processes import eventually, needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines import Engine

EXAMPLE = Path(__file__).parents[2] / "docs" / "howto" / "compose"
SERVICES = ("web", "app", "db")
# Podman's own first container of a pod is built from a program that not every machine has.
FIRST = 'infra_image = "localhost/first"\n'


@contextmanager
def composed(engine: Engine, port: int) -> Iterator[str]:
    """By docker-compose; the name of the application's container."""
    folder = engine.directory / "shop"
    shutil.copytree(EXAMPLE, folder)
    env = {
        "DOCKER_HOST": f"unix://{engine.directory}/s",
        "PORT": str(port),
        **{f"{name.upper()}_IMAGE": "tools" for name in SERVICES},
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
        yield "shop_app_1"
    finally:
        compose("down", "--timeout=1")
        shutil.rmtree(folder)


@contextmanager
def played(engine: Engine, port: int, box: Path) -> Iterator[str]:
    """By Podman of an ordinary user; the name of the application's container.

    Root's asks for limits of its own, whatever containers.conf(5) says, that not every machine's root may have.
    """
    engine("import", '--change=CMD ["/bin/sleep", "1000"]', str(box), "first")
    folder, settings = engine.directory / "shop", engine.directory / "shop.conf"
    shutil.copytree(EXAMPLE, folder)
    settings.write_text(CONF + FIRST)
    ours = replace(engine, env={**engine.env, "CONTAINERS_CONF": str(settings)})
    pods = folder / "pods.yaml"
    conf, high = folder / "web.conf", 8080
    conf.write_text(conf.read_text().replace("listen 80;", f"listen {high};"))
    text = pods.read_text().replace("/srv/shop/", f"{folder}/")
    text = text.replace('"8080:80"', f'"{port}:{high}"')
    pods.write_text(re.sub(r"image: \S+", "image: localhost/tools", text))
    options = ours.runtime_options()
    try:
        ours(*options, "kube", "play", "--network=none", str(pods))
        yield "app-httpd"
    finally:
        made = ours("pod", "ps", "--quiet", "--no-trunc", check=False).stdout.split()
        for name in SERVICES:
            ours(*options, "pod", "rm", "-f", "--time=0", name, check=False)
        ours.forget_pods(*made)
        engine("rmi", "first")
        shutil.rmtree(folder)


@needs("nginx", "redis-server", "redis-cli", "docker-compose")
@pytest.mark.parametrize("engine", ["docker", "rootless"], indirect=True)
def test_only_web_is_reached(engine: Engine, images: dict[str, Path]) -> None:
    peer, host = engine.world.peer, engine.world.host.addr4
    port = engine.world.host.free_port()

    def visits() -> str:
        url = f"http://{host}:{port}/visits"
        return peer.run(["curl", "-sS", "--max-time", "5", url]).stdout

    before = len(engine.records())
    docker = engine.kind == "docker"
    with composed(engine, port) if docker else played(engine, port, images["box"]) as app:
        first = eventually(lambda: (said := visits()).strip().isdigit() and said, 60, "the shop")
        assert int(visits()) == int(first) + 1
        # By name inside, and by no port of the host's from outside.
        calls = [call for call in engine.records()[before:] if call["target"].endswith(":6379")]
        assert {call["name"] for call in calls if call["verb"] == "connect"} == {"db"}
        for inner in (8000, 6379, 80):
            with pytest.raises(ConnectionRefusedError):
                peer.connect(host, inner)
        # Nor does what has no need of the world reach it.
        done = engine.exec(app, "wget", "-O", "-", "http://web.test/", check=False)
        assert "bad address" in done.stderr
