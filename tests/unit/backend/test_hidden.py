"""Which paths of the host are covered for a guest."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from xensock.backend import hidden

if TYPE_CHECKING:
    from pathlib import Path


def paths(**env: str) -> set[str]:
    """What is covered because of these variables alone."""
    return set(hidden.paths(env)) - set(hidden.paths({}))


@pytest.fixture
def listening(tmp_path: Path) -> Path:
    """A folder with what could act for a guest."""
    for name in ("docker.sock", "bus", "other"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / name))
    for name in ("systemd", "podman"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "private").touch()
    return tmp_path


@pytest.mark.parametrize(
    "address",
    [
        "unix://{}/other",
        "unix:{}/other",
        "unix:path={}/other",
        "unix:path={}/other,guid=0123456789abcdef",
        "unix:guid=0123456789abcdef,path={}/other",
        "tcp:host=127.0.0.1,port=1;unix:path={}/other",
        "unix:path={}/absent;unix:path={}/other",
        "unix:path={}/%6fther",
    ],
)
@pytest.mark.parametrize("name", ["DOCKER_HOST", "DBUS_SESSION_BUS_ADDRESS"])
def test_addresses_in_the_environment(listening: Path, name: str, address: str) -> None:
    text = address.replace("{}", str(listening))
    assert paths(**{name: text}) == {f"{listening}/other"}


@pytest.mark.parametrize(
    "address",
    ["", "unix:", "unix://", "unix:abstract=/tmp/x", "tcp://127.0.0.1:2375", "relative/path", ";;"],
)
def test_addresses_that_are_no_paths(address: str) -> None:
    assert paths(DOCKER_HOST=address, DBUS_SESSION_BUS_ADDRESS=address) == set()


def test_a_session_directory(listening: Path) -> None:
    assert paths(XDG_RUNTIME_DIR=str(listening)) == {
        f"{listening}/{name}" for name in ("bus", "docker.sock", "podman", "systemd")
    }


def test_a_link_is_covered_where_it_leads(listening: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(listening / "other")
    folder = tmp_path / "folder"
    folder.symlink_to(listening)
    assert paths(DOCKER_HOST=f"unix://{link}") == {f"{listening}/other"}
    assert paths(DOCKER_HOST=f"unix://{folder}/other") == {f"{listening}/other"}
    assert paths(DOCKER_HOST=f"unix:path={folder}/./other") == {f"{listening}/other"}


def test_a_broken_link_covers_nothing(tmp_path: Path) -> None:
    (tmp_path / "bus").symlink_to(tmp_path / "absent")
    (tmp_path / "docker.sock").symlink_to("docker.sock")
    assert paths(XDG_RUNTIME_DIR=str(tmp_path)) == set()


def test_what_lies_below_a_covered_folder_is_covered_once(listening: Path) -> None:
    inside = listening / "systemd" / "private"
    found = paths(XDG_RUNTIME_DIR=str(listening), DOCKER_HOST=f"unix://{inside}")
    assert str(listening / "systemd") in found
    assert str(inside) not in found
    # Only a whole name is a folder of another.
    (listening / "systemd-else").touch()
    found = paths(XDG_RUNTIME_DIR=str(listening), DOCKER_HOST=f"unix://{listening}/systemd-else")
    assert f"{listening}/systemd-else" in found


def test_the_same_path_by_two_names_is_covered_once(listening: Path) -> None:
    found = hidden.paths(
        {
            "DOCKER_HOST": f"unix://{listening}/other",
            "CONTAINER_HOST": f"unix://{listening}//other",
            "BUILDKIT_HOST": f"unix://{listening}/../{listening.name}/other",
        }
    )
    assert found == sorted(set(found))
    assert found.count(f"{listening}/other") == 1


def test_the_systems_own_exist_and_are_real() -> None:
    for path in hidden.paths(dict(os.environ)):
        assert os.path.realpath(path) == path
        assert os.path.exists(path)
        assert path != "/"


def test_home_folders(tmp_path: Path) -> None:
    (tmp_path / ".docker" / "run").mkdir(parents=True)
    assert paths(HOME=str(tmp_path)) == {f"{tmp_path}/.docker/run"}


def test_a_host_address_does_not_cover_everything() -> None:
    assert paths(DOCKER_HOST="unix:///") == set()


def test_datagram_sockets_that_there_are(tmp_path: Path) -> None:
    """Who sends a datagram to a path need not connect, so no rule would be asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
        there.bind(str(tmp_path / "a log"))
        with socket.socket(socket.AF_UNIX) as stream:
            stream.bind(str(tmp_path / "stream"))
            assert {p for p in hidden.paths({}) if p.startswith(str(tmp_path))} == {
                f"{tmp_path}/a log"
            }
