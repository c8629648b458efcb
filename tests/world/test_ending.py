"""A session that is ended from outside leaves nothing: no process, no namespace, no file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .internet import missing
from .namespaces import RUN
from .processes import eventually, network_of, stop

TESTS = Path(__file__).parents[1]
LASTS = """
import pathlib, signal

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background has Ctrl-C ignored

def test_it_lasts(world):
    left = world.host.popen(["sleep", "1000"])
    pathlib.Path("ready").write_text(f"{world.directory} {world.host.identity} {world.peer.identity}")
    left.wait()
"""


@pytest.mark.makes_world
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_session_that_is_ended_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    if reason := missing():
        pytest.skip(reason)
    (tmp_path / "test_lasts.py").write_text(LASTS)
    # Under nohup(1), or in a shell's background, some are ignored from the start.
    argv = ["env", "--default-signal=HUP,INT,TERM"]
    argv += [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-c", "/dev/null"]
    session = subprocess.Popen(
        [*argv, f"--rootdir={tmp_path}", "test_lasts.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        ready = tmp_path / "ready"
        eventually(lambda: session.poll() is not None or ready.exists(), 60, "the world")
        said = eventually(ready.read_text, 10, "its names")
        directory, *spaces = said.split(" ")
        session.send_signal(number)
        output, _ = session.communicate(timeout=60)
    finally:
        stop(session)
    assert session.returncode == pytest.ExitCode.INTERRUPTED, output
    assert not Path(directory).exists()
    assert not list(RUN.glob(f"xensock-{session.pid}-*"))
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and network_of(pid) in spaces]
    assert not left
