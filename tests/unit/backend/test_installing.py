"""What is written for engines and the service manager, and that undoing puts back what was there."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xensock.backend import installing
from xensock.cli.main import cli

if TYPE_CHECKING:
    from pathlib import Path

OURS = {"xensock": {"path": installing.runtime()}}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> installing.Places:
    """Nothing outside of the test's own directory is touched."""
    made = installing.Places(
        tmp_path / "docker" / "daemon.json",
        tmp_path / "containers.conf.d" / "xensock.conf",
        tmp_path / "units",
        "/run/xensock/containers.sock",
        False,
    )
    monkeypatch.setattr(installing.Places, "here", lambda: made)
    return made


def run(*argv: str, status: int = 0) -> str:
    done = CliRunner().invoke(cli, argv)
    assert done.exit_code == status, (done.output, done.exception)
    return done.output


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_all_and_back(places: installing.Places, tmp_path: Path) -> None:
    places.docker.parent.mkdir()
    places.docker.write_text('{ "debug": true,\n "runtimes": {"other": {"path": "/o"}} }\n')
    before = files(tmp_path)
    what = ("--docker", "--podman", "--systemd")
    shown = run("install", *what, "--dry-run")
    assert files(tmp_path) == before
    assert f"+++ {places.units}/xensock.service" in shown
    run("install", *what, "--option=--allow=web.test:80")
    made = json.loads(places.docker.read_text())
    assert made == {"debug": True, "runtimes": {"other": {"path": "/o"}, **OURS}}
    assert installing.runtime() in places.podman.read_text()
    assert "--allow=web.test:80" in (places.units / "xensock.service").read_text()
    assert "nothing had to be changed" in run("install", "--docker", "--podman")
    run("uninstall", *what)
    assert files(tmp_path) == before
    assert "nothing had to be changed" in run("uninstall", *what)


def test_what_enabling_made_goes_too(places: installing.Places, tmp_path: Path) -> None:
    """systemctl(1) enables by links beside the units; those of other units stay."""
    told = run("install", "--systemd").splitlines()[-1]
    assert told.startswith("next: systemctl daemon-reload; systemctl enable")
    others = places.units / "multi-user.target.wants" / "other.service"
    for folder, name in (("sockets", "xensock.socket"), ("multi-user", "xensock.service")):
        wants = places.units / f"{folder}.target.wants"
        wants.mkdir()
        (wants / name).symlink_to(places.units / name)
    others.symlink_to("/dev/null")
    (places.units / "xensock.service").unlink()  # its link leads nowhere
    told = run("uninstall", "--systemd").splitlines()[-1]
    assert told.startswith("next: systemctl stop xensock.socket xensock.service")
    assert list(places.units.iterdir()) == [others.parent]
    assert list(others.parent.iterdir()) == [others]
    assert "next" not in run("uninstall", "--systemd")


def test_without_a_word_all_is_undone(places: installing.Places, tmp_path: Path) -> None:
    assert "nothing had to be changed" in run("uninstall")
    run("install", "--docker", "--podman", "--systemd")
    assert "--- " in run("uninstall", "--dry-run")
    run("uninstall")
    assert files(tmp_path) == {}


def test_the_service_cleans_up_when_it_has_ended(places: installing.Places) -> None:
    """What the backend was started with, and `--cleanup` (systemd.service(5), ExecStopPost)."""
    text = installing.service_unit(places, ("--control=/run/xensock/control",))
    (start,) = (line for line in text.splitlines() if line.startswith("ExecStart="))
    assert f"ExecStopPost={start.removeprefix('ExecStart=')} --cleanup" in text.splitlines()


def test_changes_of_others_are_kept(places: installing.Places) -> None:
    run("install", "--docker")
    made = json.loads(places.docker.read_text())
    places.docker.write_text(json.dumps({**made, "debug": True}))
    run("uninstall", "--docker")
    assert json.loads(places.docker.read_text()) == {"debug": True}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.dictionaries(st.text().filter(lambda name: name != "runtimes"), JSON), st.integers(0, 3))
def test_any_settings_come_back(
    places: installing.Places, tmp_path: Path, had: dict[str, object], indent: int
) -> None:
    places.docker.parent.mkdir(exist_ok=True)
    text = json.dumps(had, indent=indent or None)
    places.docker.write_text(text)
    installing.apply([installing.docker(places)])
    assert json.loads(places.docker.read_text()) == {**had, "runtimes": OURS}
    installing.apply([installing.without_docker(places)])
    assert files(tmp_path) == {"docker/daemon.json": text.encode()}


@pytest.mark.parametrize("text", ["{", "[]", '{"runtimes": 7}'])
def test_files_that_are_not_understood(places: installing.Places, text: str) -> None:
    places.docker.parent.mkdir()
    places.docker.write_text(text)
    for verb in ("install", "uninstall"):
        if verb == "install" or "runtimes" not in text:
            done = CliRunner().invoke(cli, [verb, "--docker"])
            assert isinstance(done.exception, Exception)
        assert places.docker.read_text() == text


def test_nothing_named(places: installing.Places) -> None:
    done = CliRunner().invoke(cli, ["install"])
    assert getattr(done.exception, "hint", "") == "add --docker, --podman or --systemd"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("options", [("--allow", "*.test", "--deny=a b"), ("--listen=xen:",)])
@pytest.mark.parametrize("user", [False, True])
def test_systemd_understands_the_units(
    places: installing.Places, user: bool, options: tuple[str, ...]
) -> None:
    own = replace(places, user=user, socket="%t/xensock/containers.sock" if user else places.socket)
    changes = installing.units(own, options)
    installing.apply(changes)
    argv = ["systemd-analyze", *(["--user"] if user else []), "verify", "--man=no"]
    done = subprocess.run(
        [*argv, *(str(c.path) for c in changes)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(own.units)},
    )
    assert (done.returncode, done.stderr) == (0, "")
