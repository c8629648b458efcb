"""A real backend on this host's loopback, and the two kinds of sockets that are compared."""

from __future__ import annotations

import socket as standard
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from xensock.client import attachment, making, names, sockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

READY_S = 20


@pytest.fixture(scope="session")
def backend_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A backend that may do anything with this host's loopback."""
    path: Path = tmp_path_factory.mktemp("backend") / "socket"
    url = f"local:{path}"
    rules = ["--allow", "loopback", "--allow", "listen:any"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "xensock", "backend", "--listen", url, *rules],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "listening at" in line, line + process.stderr.read()
        yield url
    finally:
        process.terminate()
        process.wait(READY_S)
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture(scope="session")
def attached(backend_url: str) -> Iterator[str]:
    """This process is a guest of that backend."""
    attachment.attach(backend_url)
    yield backend_url
    attachment.detach()


@dataclass(frozen=True)
class Api:
    """One kind of sockets."""

    name: str
    socket: Callable[..., Any]
    create_connection: Callable[..., Any]
    create_server: Callable[..., Any]
    getaddrinfo: Callable[..., Any]


NATIVE = Api(
    "native",
    standard.socket,
    standard.create_connection,
    standard.create_server,
    standard.getaddrinfo,
)
OWN = Api("own", sockets.socket, making.create_connection, making.create_server, names.getaddrinfo)


@pytest.fixture
def both(attached: str) -> tuple[Api, Api]:
    """The kernel's sockets, and ours, for tests that compare."""
    return NATIVE, OWN


@pytest.fixture(params=[NATIVE, OWN], ids=["native", "own"])
def api(request: pytest.FixtureRequest, attached: str) -> Api:
    """The kernel's sockets, and ours."""
    chosen: Api = request.param
    return chosen
