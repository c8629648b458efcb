"""`xensock backend --cleanup`: what a killed backend left behind goes, what somebody has stays."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from daemonkit import daemon
from xensock.backend import places
from xensock.backend.cleaning import clean


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "runtime"
    path.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


def cleanup(directory: Path) -> str:
    """As ExecStopPost= of the service has it: the backend's own options, and this one."""
    options = [f"--listen=local:{directory}/s", f"--control={directory}/c", "--cleanup"]
    argv = [sys.executable, "-P", "-m", "xensock", "backend", *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


def test_what_a_killed_backend_left(tmp_path: Path) -> None:
    where = tmp_path / "there"
    where.mkdir()
    with daemon(where) as served:
        before = names(tmp_path)
        assert cleanup(where) == ""  # it lives
        assert names(tmp_path) == before
        served.process.kill()
        served.process.wait()
        left = names(tmp_path)
        assert {"there/s", "there/c"} < left
        told = cleanup(where)
        assert names(tmp_path) == {"there/trace"}
        assert {line.removeprefix("removed: ") for line in told.splitlines()} == {
            str(tmp_path / name) for name in left - {"there/trace"}
        }
    assert cleanup(where) == ""


def test_a_socket_that_others_listen_at_stays_and_is_left_alone(tmp_path: Path) -> None:
    """The service manager's: who came there would start the backend again."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        assert clean([path]) == []
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert clean([path]) == [path]


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.touch()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    link.symlink_to(tmp_path / "dead")
    assert clean([str(file), str(link), str(tmp_path / "absent")]) == []
    assert file.exists()
    assert link.is_symlink()


def test_the_runtime_directory(runtime: Path) -> None:
    own = Path(places.run_socket())
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as dead:
        alive.bind(str(own))
        alive.listen()
        dead.bind(str(own.with_name("run-1")))
        dead.close()
        (own.parent / "control-1-x").symlink_to(own.with_name("nowhere"))
        assert set(clean([])) == {str(own.with_name(name)) for name in ("run-1", "control-1-x")}
        assert os.listdir(own.parent) == [own.name]
