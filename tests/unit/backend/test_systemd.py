"""The service manager's protocol: told when the backend is ready, and its sockets taken over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from xensock.backend import systemd

if TYPE_CHECKING:
    from pathlib import Path

ACTIVATED = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "xensock", *sys.argv[2:]])
"""


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"xensock-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(5)
        manager.bind("\0" + name if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name if abstract else name)
        assert systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    assert not systemd.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not systemd.notify("READY=1")


def test_no_socket_was_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getppid()))  # another's
    assert systemd.socket_at("/x", socket.SOCK_SEQPACKET) is None
    monkeypatch.delenv("LISTEN_PID")
    assert systemd.socket_at("/x", socket.SOCK_SEQPACKET) is None


def test_a_backend_that_is_started_by_its_socket(tmp_path: Path) -> None:
    """A runtime that came first is served once the backend is there; the socket stays when it ends."""
    path = f"{tmp_path}/containers.sock"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as runtime,
    ):
        listener.bind(path)
        listener.listen()
        manager.bind(f"{tmp_path}/notify")
        manager.settimeout(30)
        runtime.settimeout(30)
        runtime.connect(path)
        runtime.send(b"nonsense")
        argv = [sys.executable, "-c", ACTIVATED, str(listener.fileno()), "backend"]
        process = subprocess.Popen(
            [*argv, f"--containers={path}"],
            pass_fds=[listener.fileno()],
            env={**os.environ, "NOTIFY_SOCKET": f"{tmp_path}/notify"},
            stderr=subprocess.DEVNULL,
        )
        try:
            assert manager.recv(100) == b"READY=1"
            assert runtime.recv(100) == b""
        finally:
            process.terminate()
            assert process.wait(30) == 0
        assert os.path.exists(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as later:
            later.connect(path)
