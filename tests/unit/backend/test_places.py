"""Backends leave word of where they are, and guests are kept from there."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from xensock.backend import hidden, places


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def test_a_backend_is_known_as_long_as_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with places.known([str(path)]):
            assert places.sockets() == [str(path)]
            assert os.path.realpath(path) in hidden.paths({}, places.sockets())
        assert places.sockets() == []


def test_a_link_that_leads_nowhere_covers_nothing(tmp_path: Path) -> None:
    with places.known([str(tmp_path / "gone")]):
        assert hidden.paths({}, places.sockets()) == hidden.paths({})


def test_a_relative_path_is_known_by_its_whole_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with places.known(["here"]):
        assert places.sockets() == [str(tmp_path / "here")]


def test_the_backend_of_the_environment_is_covered(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        covered = hidden.paths({"XENSOCK": f"local:{tmp_path / 'socket'}"})
    assert os.path.realpath(tmp_path / "socket") in covered


def test_a_directory_that_somebody_else_made_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may take a name in /tmp: guests start all the same, and no backend is known there."""

    def taken() -> None:
        raise PermissionError(errno.EPERM, "belongs to somebody else")

    monkeypatch.setattr(places, "runtime_directory", taken)
    assert places.sockets() == []
    with pytest.raises(PermissionError), places.known(["/run/x"]):
        pass


def test_a_backend_that_ends_meanwhile_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with places.known(["/gone", "/there"]):
        real = Path.glob

        def late(self: Path, pattern: str) -> list[Path]:
            found = sorted(real(self, pattern), key=lambda link: str(link.readlink()))
            found[0].unlink()
            return found

        monkeypatch.setattr(Path, "glob", late)
        assert places.sockets() == ["/there"]


def test_the_next_daemon_tidies_up_after_killed_ones(tmp_path: Path) -> None:
    left = tmp_path / "xensock" / "backend-1-00000000"
    with places.known([str(tmp_path)]):
        left.symlink_to(tmp_path / "gone")
        with places.known([]):
            assert not left.is_symlink()
            assert places.sockets() == [str(tmp_path)]


def test_a_daemon_in_a_killed_ones_place_has_one_link(tmp_path: Path) -> None:
    path, control = tmp_path / "socket", tmp_path / "control"
    path.touch()
    control.touch()
    where = tmp_path / "xensock"
    with places.known([str(path)], str(control)):
        old = {link: link.readlink() for link in where.iterdir()}
    for link, to in old.items():
        link.symlink_to(to)
    with places.known([str(path)], str(control)):
        assert not old.keys() & set(where.iterdir())
        assert places.sockets() == [str(path)]
    assert list(where.iterdir()) == []
