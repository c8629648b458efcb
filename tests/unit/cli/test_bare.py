"""Guests where nothing but Python's standard library is installed: a folder with XenSock, and no site-packages."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

import xensock
from daemonkit import daemon
from xensock.cli import bare
from xensock.cli.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    folder = tmp_path / "lib" / "xensock"
    folder.mkdir(parents=True)
    for part in xensock.__path__:
        for name in os.listdir(part):
            if not (folder / name).exists():
                (folder / name).symlink_to(os.path.join(part, name))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-S", "-P", "-m", "xensock", *words],
            env={**os.environ, "PYTHONPATH": str(folder.parent)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_a_program_runs_at_a_backend(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    program = (
        "import socket, sys\n"
        "sock = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
        "print(sock.recv(9).decode(), end='')"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        daemon(tmp_path, "--allow=loopback") as backend,
    ):

        def answer() -> None:
            with server.accept()[0] as sock:
                sock.sendall(b"out there")

        thread = threading.Thread(target=answer)
        thread.start()
        port = str(server.getsockname()[1])
        trace = tmp_path / "trace"
        words = ["--backend", backend.url, "--name=here", f"--trace-file={trace}", "--"]
        done = command("run", *words, sys.executable, "-c", program, port)
        thread.join()
    assert (done.returncode, done.stdout) == (0, "out there"), done.stderr
    assert f"connect(127.0.0.1:{port}) = 0" in trace.read_text()


def test_what_it_says_where_nobody_serves(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    url = f"local:{tmp_path}/nobody"
    done = command("run", "--backend", url, "--", "true")
    assert done.returncode == 125
    assert f"error: cannot reach the backend at {url}" in done.stderr
    assert "hint: start one" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "no command"),
        (["backend"], "cannot be had here"),
        (["run", "--policy", "x", "--", "true"], "no such option here: --policy"),
        (["run", "--backend"], "--backend needs a value"),
        (["run", "--backend", "xen:"], "no program to run"),
        (["run", "true"], "no --backend"),
    ],
)
def test_what_cannot_be_had(words: list[str], why: str) -> None:
    with pytest.raises(UserError, match=why) as raised:
        bare.parse(words)
    assert raised.value.hint


def test_options() -> None:
    options = "--backend=a=xen: --backend b=xen:1 --route any=b --name n --debug"
    wanted = bare.parse(["run", *options.split(), "sh", "-c", "x"])
    assert wanted.backends == ["a=xen:", "b=xen:1"]
    assert (wanted.routes, wanted.name, wanted.debug) == (["any=b"], "n", True)
    assert wanted.argv == ["sh", "-c", "x"]
    assert bare.parse(["run", "--backend", "xen:", "--", "-x"]).argv == ["-x"]
