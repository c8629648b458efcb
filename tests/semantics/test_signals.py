"""Signals, stopping and streams of `xensock run`, as its caller's job has them: each natively and in a guest."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from world.namespaces import eventually

from .conftest import GUESTS
from .test_process import status

if TYPE_CHECKING:
    from world.runner import Guest

# The command is the same whatever the data path.
pytestmark = pytest.mark.parametrize("guest", ["native", GUESTS[0]], indirect=True)
GONE = 10

COUNT = """
import signal, sys
ones, last = signal.SIGRTMIN + 1, signal.SIGRTMIN + 2
signal.pthread_sigmask(signal.SIG_BLOCK, {ones, last})
print("ready", flush=True)
count = 0
while signal.sigwaitinfo({ones, last}).si_signo == ones:
    count += 1
    print("one", flush=True)
print("in all", count, flush=True)
"""


def test_a_signal_to_the_whole_job_comes_once(guest: Guest) -> None:
    """Real-time signals are counted, not merged (signal(7)); a second one passed on would come before the last."""
    running = guest.popen([guest.world.python, "-c", COUNT])
    eventually(lambda: running.stdout, GONE, "the program is ready")
    for turn in range(3):
        os.killpg(running.pid, signal.SIGRTMIN + 1)
        eventually(lambda turn=turn: running.stdout.count("one") > turn, GONE, "it came")
    running.process.send_signal(signal.SIGRTMIN + 2)
    assert running.wait(GONE) == 0
    assert running.stdout == "ready\none\none\none\nin all 3\n"


def test_a_signal_to_the_job_and_one_to_the_command_are_two(guest: Guest) -> None:
    running = guest.popen([guest.world.python, "-c", COUNT])
    eventually(lambda: running.stdout, GONE, "the program is ready")
    running.process.send_signal(signal.SIGRTMIN + 1)
    os.killpg(running.pid, signal.SIGRTMIN + 1)
    eventually(lambda: running.stdout.count("one") == 2, GONE, "both came")
    running.process.send_signal(signal.SIGRTMIN + 2)
    assert running.wait(GONE) == 0
    assert running.stdout.endswith("in all 2\n")


def test_a_signal_from_the_program_to_its_job_comes_once(guest: Guest) -> None:
    """kill(0, …) reaches the command as well, which must not hand it back."""
    script = COUNT.replace("count = 0", "import os; os.kill(0, ones); count = 0")
    running = guest.popen([guest.world.python, "-c", script])
    eventually(lambda: "one" in running.stdout, GONE, "it came")
    running.process.send_signal(signal.SIGRTMIN + 2)
    # A native command is the program, which catches it; this one must outlive it, too.
    assert running.wait(GONE) == 0
    assert running.stdout == "ready\none\nin all 1\n"


@pytest.mark.parametrize("name", ["SIGALRM", "SIGABRT", "SIGVTALRM", "SIGIO", "SIGPIPE", "SIGXCPU"])
def test_whatever_ends_a_program_may_be_sent_to_the_command(guest: Guest, name: str) -> None:
    number = signal.Signals[name]
    running = guest.popen(["sh", "-c", "ulimit -c 0; echo ready; exec sleep 100"])
    eventually(lambda: running.stdout, GONE, "the program is ready")
    running.process.send_signal(number)
    assert status(running.wait(GONE)) == 128 + number


def test_a_timer_set_before_the_command_was_executed(guest: Guest) -> None:
    """alarm(2) outlives execve(2): `perl -e 'alarm 60; exec @ARGV'` is how many limit a program's time."""
    command = guest.command(["sleep", "100"])
    script = "import os, signal, sys; signal.alarm(1); os.execvp(sys.argv[1], sys.argv[1:])"
    argv = [guest.world.python, "-c", script, *command]
    done = guest.world.host.run(argv, user="xstest", cwd=guest.directory, timeout=20)
    assert status(done.returncode) == 128 + signal.SIGALRM


# --- stopping --------------------------------------------------------------------------------------


def stopped(pid: int) -> None:
    """Wait until this child is stopped."""
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None
    assert found.si_code == os.CLD_STOPPED, found
    os.waitid(os.P_PID, pid, os.WSTOPPED)


def goes_on(running_pid: int, whole_job: bool) -> None:
    (os.killpg if whole_job else os.kill)(running_pid, signal.SIGCONT)


@pytest.mark.parametrize("whole_job", [True, False])
def test_a_program_that_stops_itself_stops_the_job(guest: Guest, whole_job: bool) -> None:
    running = guest.popen(["sh", "-c", "kill -STOP $$; echo on; kill -STOP $$; echo off; exit 3"])
    for word in ("on", "off"):
        stopped(running.pid)
        assert word not in running.stdout
        goes_on(running.pid, whole_job)
        eventually(lambda word=word: word in running.stdout, GONE, "it goes on")
    assert running.wait(GONE) == 3


@pytest.mark.parametrize("name", ["SIGTSTP", "SIGTTIN", "SIGTTOU"])
@pytest.mark.parametrize("whole_job", [True, False])
def test_a_stop_sent_to_the_command_stops_the_program(
    guest: Guest, name: str, whole_job: bool
) -> None:
    """As `kill -TSTP` of a shell does: to the job, or to its first process."""
    script = 'trap "echo told; kill -STOP $$; echo on" TSTP TTIN TTOU; echo ready; while :; do sleep 0.02; done'
    running = guest.popen(["sh", "-c", script])
    eventually(lambda: running.stdout, GONE, "the program is ready")
    for turn in (1, 2):
        (os.killpg if whole_job else os.kill)(running.pid, signal.Signals[name])
        stopped(running.pid)
        assert running.stdout == "ready\n" + "told\non\n" * (turn - 1) + "told\n"
        goes_on(running.pid, whole_job)
        eventually(lambda turn=turn: running.stdout.count("on") == turn, GONE, "it goes on")
    running.process.terminate()
    assert status(running.wait(GONE)) == 128 + signal.SIGTERM


def test_a_program_that_somebody_in_the_guest_continues(guest: Guest) -> None:
    """The command goes on with it, so that it can end."""
    running = guest.popen(
        ["sh", "-c", "(while kill -CONT $$; do sleep 0.02; done) & kill -STOP $$; exit 3"]
    )
    assert running.wait(GONE) == 3


# --- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_streams_that_the_caller_closed(guest: Guest, closed: str) -> None:
    """The program finds them as its caller left them, and its files do not become the command's input or output."""
    seen = guest.directory / "seen"
    script = """
    for fd in 0 1 2; do
        if test -e /proc/self/fd/$fd; then set -- "$@" open; else set -- "$@" closed; fi
    done
    echo "$@" >seen
    """
    command = guest.command(["sh", "-c", script])
    done = guest.world.host.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command],
        user="xstest",
        cwd=guest.directory,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    wanted = ["closed" if mark in closed.split() else "open" for mark in ("<&-", ">&-", "2>&-")]
    assert seen.read_text().split() == wanted


CONNECTS = """
import socket, sys
for number in range(30):
    with socket.socket() as sock:
        print(sock.connect_ex(("127.0.0.1", 9)), sock.connect_ex((sys.argv[1], int(sys.argv[2]))))
"""


def connecting(guest: Guest) -> list[str]:
    """A program whose calls are decided here, in the guest, and by the core."""
    return [guest.world.python, "-c", CONNECTS, guest.world.peer.addr4, "9"]


def test_a_trace_that_fills_its_disk_is_told_of_once(guest: Guest) -> None:
    plain = guest.run(connecting(guest))
    full = guest.run(connecting(guest), options=("--trace-file", "/dev/full"))
    assert (full.returncode, full.stdout) == (0, plain.stdout)
    ends = (
        "xensock: the trace in /dev/full ends here: No space left on device; the program goes on\n"
    )
    assert full.stderr == ("" if guest.native else ends)


def test_a_trace_whose_reader_leaves(guest: Guest) -> None:
    """As in `xensock run --trace -- PROGRAM 2>&1 >out | head -1`: every call is still answered."""
    plain = guest.run(connecting(guest))
    command = guest.command(connecting(guest))
    if not guest.native:  # to stderr
        at = command.index("--trace-file")
        del command[at : at + 2]
    done = guest.world.host.run(
        ["bash", "-c", '"$@" 2> >(head -c 1 >/dev/null)', "bash", *command],
        user="xstest",
        cwd=guest.directory,
        timeout=20,
    )
    assert (done.returncode, done.stdout) == (0, plain.stdout)


def test_an_error_that_nobody_reads_has_its_status(guest: Guest) -> None:
    command = guest.command(["no-such-program-anywhere"])
    done = guest.world.host.run(
        ["sh", "-c", '"$@" 2>/dev/full', "sh", *command],
        user="xstest",
        cwd=guest.directory,
        timeout=20,
    )
    assert done.returncode == 127
