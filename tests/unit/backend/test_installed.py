"""What `xensock doctor` says of an installation for engines, and of what became of it."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from xensock.backend.installed import row
from xensock.backend.installing import Places
from xensock.cli.main import cli

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    made = Places(
        tmp_path / "docker" / "daemon.json",
        tmp_path / "conf" / "xensock.conf",
        tmp_path / "units",
        f"{tmp_path}/containers.sock",
        False,
    )
    monkeypatch.setattr(Places, "here", lambda: made)
    return made


def install(*options: str) -> None:
    done = CliRunner().invoke(cli, ["install", *options])
    assert done.exit_code == 0, done.output


def test_nothing_is_installed(places: Places) -> None:
    assert row(places).state == "ok"
    places.docker.parent.mkdir()
    for text in ("{}", '{"runtimes": {"other": {"path": "/o"}}}'):
        places.docker.write_text(text)
        assert (row(places).state, row(places).remedy) == ("ok", "")


def test_an_installation_that_works(places: Places) -> None:
    install("--docker", "--podman", "--systemd")
    found = row(places)
    assert (found.state, found.remedy) == ("warn", "systemctl enable --now xensock.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(places.socket)
        found = row(places)
        assert (found.state, found.remedy) == ("ok", "")
        assert "docker, podman, systemd" in found.detail
    done = CliRunner().invoke(cli, ["doctor", "--json"])
    assert found._asdict() in json.loads(done.output)["checks"]


def test_without_a_service_manager(places: Places) -> None:
    install("--podman")
    assert f"xensock backend --containers {places.socket}" in row(places).remedy


@pytest.mark.parametrize("option", ["--docker", "--podman", "--systemd"])
@pytest.mark.parametrize("damage", ["moved", "broken"])
def test_what_leads_nowhere(places: Places, option: str, damage: str) -> None:
    install(option)
    paths = {
        "--docker": places.docker,
        "--podman": places.podman,
        "--systemd": places.units / "xensock.service",
    }
    path = paths[option]
    text = path.read_text()
    path.write_text(text.replace("/", "/gone/", 1) if damage == "moved" else "[[ {")
    found = row(places)
    assert (found.state, found.remedy) == ("warn", f"xensock install {option}")
    assert ("names no program" in found.detail) is (damage == "broken")
