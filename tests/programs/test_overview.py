"""`xensock status`, `top`, `inspect`, and `run -v`: what moves, and what was refused and why, though nobody traces."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import guestkit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PATIENCE = 60
METADATA = "169.254.169.254:80"
paths = pytest.mark.parametrize("path", guestkit.paths())

BUSY = """
import socket, sys
for port in (80, 80):
    try:
        socket.create_connection(("169.254.169.254", port))
    except PermissionError:
        pass
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
try:
    while True:
        sock.sendall(bytes(65536))
except OSError:
    pass
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime directory of the test's own, so that it sees its own guests only."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("r")))


def command(*options: str) -> list[str]:
    return [sys.executable, "-P", "-m", "xensock", *options]


def said(*options: str) -> str:
    done = subprocess.run(command(*options), timeout=PATIENCE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def busy(*options: str) -> Iterator[None]:
    """A guest that is refused the metadata service, twice, and then sends all the time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        port = str(server.getsockname()[1])
        argv = ["run", "--name", "talker", *options, "--", sys.executable, "-c", BUSY, port]
        with subprocess.Popen(command(*argv)) as process:
            try:
                client, _ = server.accept()
                with client:
                    thread = threading.Thread(target=drain, args=(client,))
                    thread.start()
                    yield
                    client.shutdown(socket.SHUT_RDWR)
                    thread.join()
                assert process.wait(PATIENCE) == 0
            finally:
                process.kill()


def drain(client: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while client.recv(1 << 16):
            pass


@paths
def test_what_moves_and_what_was_refused(path: str) -> None:
    with busy("--datapath", path, "--allow", "loopback"):

        def moving() -> dict[str, Any] | None:
            told: dict[str, Any] = json.loads(said("status", "--json"))
            (rate,) = told["rates"].values()
            return told if rate["sent"] > 0 else None

        told = until(moving)
        assert (told["schema"], told["guests"], len(told["backends"])) == (1, 1, 1)
        (refused,) = told["denials"]  # once, though it tried twice
        assert (refused["guest"], refused["target"]) == ("talker", METADATA)
        assert refused["program"].startswith("python")
        shown = said("status")
        assert "refused last" in shown
        assert f"--allow {METADATA}" in shown

        known = json.loads(said("inspect", "talker"))
        assert known["guest"]["name"] == "talker"
        assert [one["state"] for one in known["sockets"]] == ["established"]
        assert [one["target"] for one in known["denials"]] == [METADATA]

        screens = said("top", "-n", "2", "--interval", "0.2").splitlines()
        assert [line.split()[0] for line in screens] == ["1", "GUEST", told_id(told)] * 2
        assert screens[-1].split()[2] != "0"
        (plain,) = said("top", "--plain").splitlines()
        assert plain.split("\t")[:2] == [told_id(told), "talker"]


def told_id(told: dict[str, Any]) -> str:
    (guest,) = told["rates"]
    return str(guest)


@paths
def test_refusals_are_said_once_with_their_remedy(path: str) -> None:
    script = BUSY.partition("sock = ")[0]
    words = ["run", "--datapath", path, "-v", "--", sys.executable, "-c", script]
    done = subprocess.run(command(*words), timeout=PATIENCE, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert f"connect({METADATA}) = -1 EACCES" in line
    assert f"hint: --allow {METADATA}" in line
    silent = [word for word in words if word != "-v"]
    done = subprocess.run(command(*silent), timeout=PATIENCE, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.ring
def test_a_daemon_remembers_for_all_its_guests(tmp_path: Path) -> None:
    url, control = f"local:{tmp_path}/s", str(tmp_path / "c")
    script = BUSY.partition("sock = ")[0]
    with subprocess.Popen(
        command("backend", "--listen", url, "--control", control), stderr=subprocess.PIPE, text=True
    ) as daemon:
        try:
            assert daemon.stderr is not None
            assert "listening" in daemon.stderr.readline()
            for name in ("one", "two"):
                said("run", "--name", name, "--backend", url, "--", sys.executable, "-c", script)
            told = json.loads(said("status", "--json", "--control", control))
            assert {each["target"] for each in told["denials"]} == {METADATA}
            assert len({each["guest"] for each in told["denials"]}) == 2
        finally:
            daemon.terminate()
            daemon.communicate(timeout=PATIENCE)
