"""Engines for the tests of containers: each starts once, and only if a test asks for it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import engines
import pytest
from languages import go_program, musl_dynamic, musl_program

from world.processes import program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines import Engine

    from world.internet import World

NGINX = """
daemon off; user root; pid /tmp/nginx.pid; error_log stderr;
events { worker_connections 64; }
http {
  access_log off; default_type text/plain;
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server {
    listen 8080;
    root /www;
    location = /client { return 200 "$remote_addr\\n"; }
    location /world/ { proxy_pass http://v4only.test/; }
  }
}
"""
KINDS = ("docker", "podman", "rootless", "crun")  # the last is Podman of root with crun


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def images(world: World) -> dict[str, Path]:
    """Tars of the images, by name."""
    directory = world.directory / "images"
    directory.mkdir(mode=0o755)
    wanted = [program(name) for name in ("nginx", "curl", "redis-server", "redis-cli")]
    made = [go_program(world)] if program("go") else []
    made += [musl_program(world), musl_dynamic(world)] if program("musl-gcc") else []
    return {
        "box": engines.image(directory, "box", filter(None, [program("socat")])),
        "tools": engines.image(
            directory, "tools", [*filter(None, wanted), *made], {"etc/nginx.conf": NGINX}
        ),
        # For /usr of this machine, mounted.
        "machine": engines.image(
            directory, "machine", links={"lib": "usr/lib", "lib64": "usr/lib64"}
        ),
    }


@pytest.fixture(scope="session", params=KINDS)
def engine(request, world: World, images) -> Iterator[Engine]:
    """An engine with its backend, and the images loaded."""
    if reason := engines.missing(request.param):
        pytest.skip(reason)
    directory = world.directory / f"c-{request.param}"
    directory.mkdir()
    if request.param == "docker":
        made = engines.docker(world, directory)
    elif request.param in ("podman", "crun"):
        oci = "runc" if request.param == "podman" else "crun"
        made = engines.podman(world, directory, None, engines.OWN, oci)
    else:
        world.user.own(directory)
        command = request.getfixturevalue("xensock")
        made = engines.rootless(world, directory, command)
    with contextmanager(lambda: made)() as ready:
        for name, tar in images.items():
            ready("import", str(tar), name, timeout=120)
        yield ready


@pytest.fixture
def command(engine: Engine, request) -> list[str]:
    """How whoever has the engine starts our program."""
    return engines.OWN if engine.user is None else request.getfixturevalue("xensock")


@pytest.fixture(autouse=True)
def _nothing_left(request) -> Iterator[None]:
    yield
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine").remove()
