"""`xensock run --backend` and `--route` when they cannot: each way is one clear error, and no program begins."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import daemonkit
import guestkit

if TYPE_CHECKING:
    from pathlib import Path

needs_guests = pytest.mark.skipif(bool(guestkit.missing()), reason=guestkit.missing() or "-")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xensock", "run", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def shown(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """The error's lines by their labels; fails when there is anything else."""
    assert done.stdout == ""
    lines = [line.split(": ", 1) for line in done.stderr.splitlines()]
    assert [label for label, _ in lines] in (["error", "cause", "hint"], ["error", "hint"])
    return {label: text for label, text in lines}


AT = "local:/nonexistent/backend"


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["--backend", "local:"], "the path is empty", "local:PATH"),
        (["--backend", "tcp:192.0.2.1"], "no transport is called 'tcp'", "local:PATH"),
        (["--backend", "/run/xensock"], "'/run/xensock' names no transport", "local:PATH"),
        (["--backend", "vpn=/run/xensock"], "'/run/xensock' names no transport", "local:PATH"),
        (["--backend", "local:/" + "x" * 108], "at most 107", "shorter path"),
        (["--backend", f"={AT}"], "'' is no name for a backend", "--backend NAME=URL"),
        (["--backend", f"a b={AT}"], "'a b' is no name", "letters"),
        (["--backend", f"host={AT}"], "called 'host'", "--backend OTHER=URL"),
        (["--backend", f"a={AT}", "--backend", f"a={AT}"], "called 'a'", "--backend OTHER=URL"),
        (["--backend", AT, "--backend", f"backend={AT}"], "called 'backend'", "OTHER=URL"),
        (["--route", "any=host"], "--route without --backend", "--backend NAME=URL"),
        (["--backend", f"a={AT}", "--route", "any=b"], "called 'b'", "use one of: a, host"),
        (["--backend", AT, "--route", "any=b"], "called 'b'", "use one of: backend, host"),
        (["--backend", f"a={AT}", "--route", "any"], "malformed route 'any'", "RULE=BACKEND"),
        (["--backend", f"a={AT}", "--route", "=a"], "=a", "RULE=BACKEND"),
        (["--backend", f"a={AT}", "--route", "any="], "malformed route", "RULE=BACKEND"),
        (["--backend", f"a={AT}", "--route", "pubilc=a"], "pubilc", "did you mean public"),
        (["--backend", f"a={AT}", "--route", "any:99999=a"], "99999", "0-65535"),
        (["--backend", f"a={AT}", "--route", "listen:any=a"], "about listening", "routes choose"),
        (["--backend", f"a={AT}", "--route", "unix:/s=a"], "unix socket", "routes choose"),
        (["--backend", AT, "--datapath", "direct"], "exclude each other", "--datapath out"),
        (["--backend", AT, "--allow", "unix:/run/s"], "unix:/run/s", "xensock backend"),
        (["--backend", AT], f"cannot reach the backend at {AT}", f"backend --listen {AT}"),
    ],
)
def test_a_wrong_backend_or_route_is_one_clear_error(
    arguments: list[str], error: str, hint: str
) -> None:
    done = run(*arguments, "--", "true")
    assert done.returncode == 125
    lines = shown(done)
    assert error in lines["error"]
    assert hint in lines["hint"]


def unreachable(path: Path, tmp_path: Path) -> dict[str, str]:
    """What is said about a backend there; the program must not have begun."""
    done = run("--backend", f"local:{path}", "--", "touch", str(tmp_path / "begun"))
    assert done.returncode == 125
    assert not (tmp_path / "begun").exists()
    lines = shown(done)
    assert lines["error"] == f"cannot reach the backend at local:{path}"
    return lines


def test_a_backend_that_ended(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ended:
        ended.bind(str(tmp_path / "s"))
    lines = unreachable(tmp_path / "s", tmp_path)
    assert (lines["cause"], lines["hint"]) == (
        "Connection refused",
        f"it is not running; start one: xensock backend --listen local:{tmp_path}/s",
    )


def test_a_socket_of_another_program(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        assert "another program's" in unreachable(tmp_path / "s", tmp_path)["hint"]


@pytest.mark.parametrize("said", [b"", b"nonsense"])
def test_a_backend_that_is_none(tmp_path: Path, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()

        def serve() -> None:
            with other.accept()[0] as guest:
                if said:
                    guest.send(said)
                    guest.recv(100)

        server = threading.Thread(target=serve)
        server.start()
        try:
            lines = unreachable(tmp_path / "s", tmp_path)
        finally:
            server.join(10)
    assert lines["cause"]
    assert lines["hint"]


@needs_guests
def test_one_of_two_backends_is_missing(tmp_path: Path) -> None:
    with daemonkit.daemon(tmp_path) as backend:
        done = run("--backend", backend.url, "--backend", f"vpn={AT}", "--", "true")
        assert done.returncode == 125
        assert shown(done)["error"] == f"cannot reach the backend at {AT}"
        assert daemonkit.gone(backend)
        assert run("--backend", backend.url, "--", "true").returncode == 0
