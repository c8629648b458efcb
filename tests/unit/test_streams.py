"""Lines for stderr, and standard streams that are closed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from xensock import streams

STATE = """
import os, sys
from xensock.streams import complete, say
complete()
print("out", flush=True)
say("err")
assert sys.stdin.read() == ""
first = os.open(os.devnull, os.O_RDONLY)
kept = [number for number in (0, 1, 2) if os.get_inheritable(number)]
os.write(9, f"{first} {kept}".encode())
"""


@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)])
def test_closed_streams_are_taken(closed: tuple[int, ...]) -> None:
    """Files of ours get other numbers, and a program that is executed finds closed what was closed."""
    near, far = os.pipe()
    words = " ".join(f"{fd}{'<' if fd == 0 else '>'}&-" for fd in closed)
    script = f'exec 9>&{far} </dev/null; exec "$@" {words}'
    done = subprocess.run(
        ["bash", "-c", script, "bash", sys.executable, "-c", STATE],
        pass_fds=[far],
        capture_output=True,
        timeout=30,
        check=False,
    )
    os.close(far)
    with open(near, encoding="utf-8") as told:
        first, _, kept = told.read().partition(" ")
    assert done.returncode == 0, done.stderr
    assert int(first) > 2
    assert kept == str([fd for fd in (0, 1, 2) if fd not in closed])
    assert done.stdout == (b"" if 1 in closed else b"out\n")
    assert done.stderr == (b"" if 2 in closed else b"err\n")


def test_a_warning_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    streams.warn("it rains\n")
    assert capsys.readouterr().err == "xensock: it rains\n"


def test_nobody_is_told_that_nobody_listens() -> None:
    script = "from xensock.streams import say; say('lost'); say('lost'); import os; os._exit(3)"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], stderr=full, stdout=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stdout) == (3, b"")
