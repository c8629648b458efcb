"""The holder with backends that are a few lines: when it starts one again, what that finds, and when it ends itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

HOLDER = """
import sys
from xensock.backend import holder
holder.FIRST_WAIT_S, holder.TRIES = 0.001, 4
sys.exit(holder.Holder([sys.executable, "-c", *sys.argv[1:]]).run())
"""
COUNTS = """
import os, signal, socket, sys
from xensock.backend import holder, systemd
from xensock.backend.store import Store, inherited
assert holder.held() and not holder.held()
left = inherited()
store = Store()
mine = left.get("count", -1)
if mine < 0:
    mine = os.memfd_create("count")
    store.keep("count", mine)
    store.keep("gone", mine)
    store.drop("gone")
count = len(os.pread(mine, 100, 0))
os.pwrite(mine, b"x", count)
print(count, sorted(left), flush=True)
if count < 6:
    systemd.notify("READY=1")
    if count % 2:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(5)
"""
FAILS = """
import os, sys
from xensock.backend import systemd
print("tried", flush=True)
if not os.path.exists(sys.argv[1]):
    open(sys.argv[1], "w").close()
    systemd.notify("READY=1")
sys.exit(7)
"""
WAITS = """
import os, signal
signal.signal(signal.SIGHUP, lambda *_: print("hangup", flush=True))
print("waits", os.getpid(), flush=True)
while True:
    signal.pause()
"""


def held(code: str, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, code, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_starts_again_and_finds_what_was_kept() -> None:
    with held(COUNTS) as holder:
        out, err = holder.communicate(timeout=60)
    assert holder.returncode == 0, err
    assert out.splitlines() == ["0 []", *(f"{count} ['count']" for count in range(1, 7))]
    assert err.count("started again") == 6
    assert "signal 9" in err
    assert "status 5" in err


def test_one_that_cannot_be_started() -> None:
    with held("import sys; sys.exit(3)") as holder:
        _, err = holder.communicate(timeout=60)
    assert (holder.returncode, err) == (3, "")


def test_one_that_cannot_be_started_again(tmp_path: Path) -> None:
    with held(FAILS, str(tmp_path / "ran")) as holder:
        out, _ = holder.communicate(timeout=60)
    assert holder.returncode == 7
    assert out.count("tried") == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(number: signal.Signals) -> None:
    with held(WAITS) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().startswith("waits")
        holder.send_signal(signal.SIGHUP)
        assert holder.stdout.readline() == "hangup\n"
        holder.send_signal(number)
        _, err = holder.communicate(timeout=60)
        # Python itself makes an exception of SIGINT, and then ends by the signal.
        assert holder.returncode == 128 + number, err
        assert "started again" not in err


REPLACED = """
import os, signal, sys, time
from xensock.backend import holder, systemd
from xensock.backend.store import Store, inherited
holder.held()
left = inherited()
mode = open(sys.argv[1]).read()
if mode == "broken":
    sys.exit(3)
if mode == "silent":
    signal.pause()
holder.take()
store = Store()
if "made" not in left:
    fd = os.memfd_create("made")
    os.write(fd, b"%d" % os.getpid())
    store.keep("made", fd)
    left["made"] = fd
systemd.notify("READY=1")
print(mode, os.getpid(), os.pread(left["made"], 100, 0).decode(), flush=True)
for line in sys.stdin:
    print(os.read(holder.ask_to_be_replaced(), 1000).decode(), flush=True)
    print("goes on", os.getpid(), flush=True)
"""


class Replaceable:
    """A held backend that asks to be replaced when it is told to."""

    def __init__(self, directory: Path, within_s: int) -> None:
        self._mode = directory / "mode"
        self._mode.write_text("first")
        setting = f"holder.TAKES_WITHIN_S = {within_s}\nholder.FIRST_WAIT_S"
        argv = [sys.executable, "-c", HOLDER.replace("holder.FIRST_WAIT_S", setting), REPLACED]
        self.process = subprocess.Popen(
            [*argv, str(self._mode)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, mode: str) -> str:
        """What is said next when the next one is to be of that kind."""
        self._mode.write_text(mode)
        print("replace", file=self.process.stdin, flush=True)
        return self.line()

    def close(self) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()
            assert self.process.wait(60) == 0


def test_one_that_is_replaced(tmp_path: Path) -> None:
    held = Replaceable(tmp_path, 100)
    _, first, maker = held.line().split()
    assert first == maker
    assert "status 3" in held.ask("broken")
    assert held.line() == f"goes on {first}"
    said, second, maker = held.ask("second").split()
    assert (said, maker) == ("second", first)  # what the first had kept
    assert second != first
    assert not Path(f"/proc/{first}").exists()
    assert "status 3" in held.ask("broken")
    assert held.line() == f"goes on {second}"
    held.close()


def test_one_that_never_comes_to_take_over(tmp_path: Path) -> None:
    held = Replaceable(tmp_path, 1)
    _, first, _ = held.line().split()
    assert "within 1 s" in held.ask("silent")
    assert held.line() == f"goes on {first}"
    held.close()
