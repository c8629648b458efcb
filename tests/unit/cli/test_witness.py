"""The witness: whether a signal went to the whole process group, however the two come together."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# Tells of each signal whether the job had it; with an argument it waits for a line before it asks.
WATCHING = """
import os, signal, sys
from xensock.cli import witness
signal.pthread_sigmask(signal.SIG_BLOCK, witness.ALL)
beheld = witness.start()
print(beheld.pid, flush=True)
while True:
    info = signal.sigwaitinfo(witness.ALL)
    if info.si_signo == signal.SIGTERM:
        break
    if info.si_signo != signal.SIGCHLD and sys.argv[1:]:
        print(info.si_signo, "taken", flush=True)
        sys.stdin.readline()
    if info.si_signo != signal.SIGCHLD:
        print(info.si_signo, beheld.saw(info.si_signo), flush=True)
"""
RT = signal.SIGRTMIN + 3


@contextmanager
def watching(paused: bool = False, **kw: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    with subprocess.Popen(
        [sys.executable, "-c", WATCHING, *(["paused"] if paused else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **kw,  # type: ignore[call-overload]
    ) as process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def resume(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


@pytest.mark.parametrize("leader", [True, False], ids=["of a session", "of a group"])
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTSTP, signal.SIGWINCH, signal.SIGCONT, RT]
)
def test_the_groups_and_ones_own(number: int, leader: bool) -> None:
    kw = {"start_new_session": True} if leader else {"process_group": 0}
    with watching(**kw) as (process, _):
        for whole in (True, False, False, True, True, False):
            (os.killpg if whole else os.kill)(process.pid, number)
            assert told(process) == f"{int(number)} {whole}"


def test_many_in_a_row() -> None:
    """Real-time signals are queued: of each that came here, whether the group has it."""
    with watching(process_group=0) as (process, _):
        for _ in range(50):
            os.killpg(process.pid, RT)
        assert [told(process) for _ in range(50)] == [f"{RT} True"] * 50
        os.kill(process.pid, RT)
        assert told(process) == f"{RT} False"


def test_a_job_that_stops_and_goes_on() -> None:
    with watching(process_group=0) as (process, _):
        os.killpg(process.pid, signal.SIGSTOP)
        assert os.waitid(os.P_PID, process.pid, os.WSTOPPED) is not None
        os.kill(process.pid, signal.SIGCONT)  # the witness is left behind
        assert told(process) == f"{int(signal.SIGCONT)} False"
        os.killpg(process.pid, signal.SIGUSR1)
        assert told(process) == f"{int(signal.SIGUSR1)} True"


@pytest.mark.parametrize(
    ("first", "then"),
    [(signal.SIGCONT, signal.SIGTSTP), (signal.SIGTTIN, signal.SIGCONT)],
)
def test_what_a_later_one_takes_back_is_the_jobs(first: int, then: int) -> None:
    """The front has taken it, and from the witness it has gone when the front asks."""
    with watching(process_group=0, paused=True) as (process, _):
        os.killpg(process.pid, first)
        assert told(process) == f"{int(first)} taken"
        os.killpg(process.pid, then)
        resume(process)
        assert told(process) == f"{int(first)} True"
        assert told(process) == f"{int(then)} taken"
        resume(process)
        assert told(process) == f"{int(then)} True"
        os.kill(process.pid, first)
        assert told(process) == f"{int(first)} taken"
        resume(process)
        assert told(process) == f"{int(first)} False"


def test_a_witness_that_is_gone_saw_nothing() -> None:
    with watching(process_group=0) as (process, pid):
        os.kill(pid, signal.SIGKILL)
        os.killpg(process.pid, signal.SIGUSR1)
        assert told(process) == f"{int(signal.SIGUSR1)} False"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_witness_ends_with_the_front(end: int) -> None:
    with watching(process_group=0) as (process, pid):
        gone = os.pidfd_open(pid)
        os.kill(process.pid, end)
        process.wait(10)
        assert select.select([gone], [], [], 10)[0]
        os.close(gone)
