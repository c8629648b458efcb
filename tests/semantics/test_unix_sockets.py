"""Unix sockets of the host: those that lead out are not reachable, ordinary ones are."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .attempts import attempt, attempts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.runner import Guest

    from .conftest import Site


@pytest.fixture
def control_socket(request: pytest.FixtureRequest, site: Site) -> Iterator[Path]:
    """A socket of the host where a container engine or the system bus has it; only if absent."""
    path = Path(request.param)
    if path.exists() or path.is_symlink():
        pytest.skip(f"this machine has a {path}")
    made = [parent for parent in [path.parent, *path.parent.parents] if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        yield path
    finally:
        listener.close()
        path.unlink(missing_ok=True)
        for directory in made:
            directory.rmdir()


@pytest.mark.parametrize(
    "control_socket",
    ["/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock"],
    indirect=True,
)
def test_control_sockets_of_the_host(guest: Guest, site: Site, control_socket: Path) -> None:
    """Natively reached, never from a guest, by whichever name."""
    link = guest.directory / "link"
    link.symlink_to(control_socket)
    names = [
        str(control_socket),
        str(link),
        f"/var{control_socket}",
        f"/proc/self/root{control_socket}",
    ]
    found = attempts(guest, site, *(f"unix {name}" for name in names))
    if guest.native:
        assert found == ["ok"] * len(names)
    else:
        assert set(found) <= {"ENOENT", "ECONNREFUSED", "EACCES", "ENOTDIR", "ENOTSOCK"}


def test_ordinary_unix_sockets_are_untouched(guest: Guest, site: Site) -> None:
    """A socket in the user's own directory, served outside the guest, is a file like any other."""
    path = guest.directory / "ordinary"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        assert attempt(guest, site, "unix", str(path)) == "ok"


def test_abstract_sockets_of_the_host(guest: Guest, site: Site) -> None:
    """They belong to a network namespace, so a guest has its own."""

    def bind() -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.bind("\0xensock-test-abstract")
        made.listen()
        return made

    with site.world.host.inside(bind):
        found = attempt(guest, site, "unix", "@xensock-test-abstract")
    assert found == ("ok" if guest.native else "ECONNREFUSED")
