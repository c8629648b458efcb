"""Engines for the tests of containers: each starts once, and only if a test asks for it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import engines
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines import Engine

    from world.internet import World

KINDS = ("docker", "podman", "rootless")


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
    return {"box": engines.image(directory, "box")}


@pytest.fixture(scope="session", params=KINDS)
def engine(request, world: World, images) -> Iterator[Engine]:
    """An engine with its backend, and the images loaded."""
    if reason := engines.missing(request.param):
        pytest.skip(reason)
    directory = world.directory / f"c-{request.param}"
    directory.mkdir()
    if request.param == "docker":
        made = engines.docker(world, directory)
    elif request.param == "podman":
        made = engines.podman(world, directory, None, engines.OWN, "runc")
    else:
        world.user.own(directory)
        command = request.getfixturevalue("xensock")
        made = engines.rootless(world, directory, command)
    with contextmanager(lambda: made)() as ready:
        for name, tar in images.items():
            ready("import", str(tar), name, timeout=120)
        yield ready


@pytest.fixture(autouse=True)
def _nothing_left(request) -> Iterator[None]:
    yield
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine").remove()
