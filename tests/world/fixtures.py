"""Fixtures of the test world, for every test directory (imported by tests/conftest.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .internet import World, missing
from .runner import Guest, install
from .vpn import Vpn, missing_vpn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _pytest.mark.structures import ParameterSet

DATAPATHS = ("native", "direct", "relay", "ring")


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """The small internet; see `world.internet` for its addresses and names."""
    if reason := missing():
        pytest.skip(reason)
    made = World.create()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def vpn(world: World) -> Iterator[Vpn]:
    """A tunnel between the host and a server that is reachable through it only."""
    if reason := missing_vpn():
        pytest.skip(reason)
    made = Vpn.create(world)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def xensock(world: World) -> list[str]:
    """The command as the ordinary user of the world can run it."""
    return install(world)


def only(*paths: str) -> list[ParameterSet]:
    """Parameters of `guest` for a test that wants just these data paths, marked with their names.

    `@pytest.mark.parametrize("guest", only("direct"), indirect=True)`
    """
    return [pytest.param(path, marks=getattr(pytest.mark, path)) for path in paths]


@pytest.fixture(params=only(*DATAPATHS))
def guest(request: pytest.FixtureRequest, world: World) -> Iterator[Guest]:
    """A runner of programs on the world's host: natively, and in guests over each data path.

    A test that wants fewer data paths says so with `only`.
    """
    native = request.param == "native"
    command = [] if native else request.getfixturevalue("xensock")
    runner = Guest.create(world, request.param, command)
    try:
        yield runner
    finally:
        runner.close()
