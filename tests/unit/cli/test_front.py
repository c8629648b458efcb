"""The front: its backend's status, signals handed on, an early status."""

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

PRELUDE = """\
import os, select, signal, socket, sys
from xensock.cli import front

def say(text):
    os.write(2, text.encode() + b"\\n")

"""


@contextmanager
def fronted(backend: str) -> Iterator[subprocess.Popen[bytes]]:
    """A front in a process group of its own, whose backend is the function body; both speak on stderr."""
    body = "\n".join("    " + line for line in backend.strip().splitlines())
    script = f"{PRELUDE}def backend(group, job):\n{body}\n\nsys.exit(front.run(backend))\n"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[bytes]) -> str:
    assert process.stderr is not None
    return process.stderr.readline().decode().rstrip("\n")


@pytest.mark.parametrize("status", [0, 1, 7, 125, 137, 255])
def test_the_backends_status_is_the_fronts(status: int) -> None:
    with fronted(f"return {status}") as process:
        assert process.wait(30) == status


@pytest.mark.parametrize("stopped", [False, True])
def test_nobody_of_the_job_outlives_the_front(stopped: bool) -> None:
    stop = "\n".join(
        [
            "own = f'/proc/{os.getppid()}/task/{os.getppid()}/children'",
            "while len(found := open(own).read().split()) < 2: pass",
            "[os.kill(int(each), signal.SIGSTOP) for each in found if int(each) != os.getpid()]",
        ]
    )
    for _ in range(10):
        with fronted(f"{stop if stopped else ''}\nreturn 3") as process:
            assert process.wait(30) == 3
            with pytest.raises(ProcessLookupError):
                os.killpg(process.pid, 0)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os.abort()"])
def test_a_backend_that_dies_is_our_failure(end: str) -> None:
    with fronted(f"import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); {end}") as p:
        assert p.wait(30) == 125


def test_a_fault_of_the_backend_is_our_failure() -> None:
    with fronted("raise RuntimeError('fault')") as process:
        assert process.wait(30) == 125


def test_the_backend_leaves_the_job() -> None:
    with fronted(
        "say(f'{group} {os.getpgrp()} {os.getpid()} {os.getppid()}'); return 0"
    ) as process:
        group, own, pid, parent = map(int, said(process).split())
        assert group == process.pid == parent
        assert own == pid != group


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGWINCH]
)
def test_a_signal_to_the_front_is_handed_on(number: int) -> None:
    with fronted("say('up'); return job.recv(1)[0]") as process:
        assert said(process) == "up"
        process.send_signal(number)
        assert process.wait(30) == number


def test_a_signal_sent_before_the_backend_listens_is_not_lost() -> None:
    with fronted("say('up'); sys.stdin.read(1); say(str(list(job.recv(10)))); return 0") as process:
        assert said(process) == "up"
        process.send_signal(signal.SIGUSR1)
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        assert said(process) == f"[{int(signal.SIGUSR1)}]"


def test_the_end_of_the_front_is_seen() -> None:
    with fronted("say('up'); say(repr(job.recv(1))); return 0") as process:
        assert said(process) == "up"
        process.kill()
        assert said(process) == "b''"


def test_only_the_backend_holds_the_output() -> None:
    with fronted("say('up'); os.close(1); job.recv(1); return 3") as p:
        assert said(p) == "up"
        assert p.stdout is not None
        assert select.select([p.stdout], [], [], 10)[0]
        assert p.stdout.read() == b""  # while the front and the backend live
        assert p.poll() is None
        p.send_signal(signal.SIGUSR1)
        assert p.wait(30) == 3


@pytest.mark.parametrize("quiet", [True, False])
def test_an_early_status_while_the_backend_goes_on(quiet: bool) -> None:
    script = f"""
front.detacher(job, {quiet})(5)
say("late")
return 0 if job.recv(1) == b"" else 1
"""
    with fronted(script) as process:
        assert process.wait(30) == 5
        assert process.stderr is not None
        assert process.stderr.read().decode() == ("" if quiet else "late\n")


def test_children_of_the_backend_do_not_confuse_the_front() -> None:
    with fronted("if os.fork() == 0: os._exit(9)\nos.wait(); return 4") as process:
        assert process.wait(30) == 4
