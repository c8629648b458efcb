"""Memory of a process tree, and connections that are held."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import guestkit
from xensock.bench import hold_client, memory
from xensock.bench.failure import BenchError
from xensock.bench.machine import LOOPBACK
from xensock.bench.rows import TARGETS
from xensock.bench.side import Setting

MEGABYTE = 1 << 20
# Holds 8 MB, and so does the child that it starts.
TREE = """
import os, sys
kept = bytearray(os.urandom(8 << 20))
if os.fork() == 0:
    own = bytearray(os.urandom(8 << 20))
    print("both", flush=True)
    sys.stdin.readline()
    os._exit(0)
os.wait()
"""


def test_descendants_count() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TREE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "both\n"
        whole, alone = memory.backend_bytes(process.pid), memory.pss(process.pid)
        process.communicate("end\n")
    assert whole > 16 * MEGABYTE
    assert whole > alone > 4 * MEGABYTE


def test_more_connections_than_files_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    with (
        pytest.raises(BenchError) as caught,
        memory.idle_connections(Setting("xensock", LOOPBACK, held=100)),
    ):
        pass
    assert "ulimit -Hn 200" in caught.value.hint


def test_connections_are_held_until_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, memory._accepting(listener):
        port = listener.getsockname()[1]
        with subprocess.Popen(
            [sys.executable, "-I", hold_client.__file__, "127.0.0.1", str(port), "20"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            before = len(os.listdir(f"/proc/{process.pid}/fd"))
            process.stdin.write("open\n")
            process.stdin.flush()
            assert process.stdout.readline() == "held 20\n"
            assert len(os.listdir(f"/proc/{process.pid}/fd")) == before + 20
            process.communicate("end\n", timeout=20)
        assert process.returncode == 0


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.skipif(bool(guestkit.missing()), reason=guestkit.missing() or "-")
def test_ten_thousand_idle_connections_are_within_the_target() -> None:
    """Direct ones need nothing of the backend but what its tables have for them."""
    command = str(Path(sys.executable).with_name("xensock"))
    setting = Setting(command, LOOPBACK)
    assert setting.held == 10_000
    with memory.idle_connections(setting) as pair:
        each = pair.ours()
    most = TARGETS["memory"].most
    assert most == 2048
    assert each <= most
