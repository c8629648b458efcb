"""A frontend may vanish at any instruction: everything of it is freed, one line says so, nobody else notices.

The guest (frontend.c) is traced (ptrace(2)): it is let go as far as a chosen system call, from there so many single
instructions, and killed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from libxensock import PREFIX, Attachment

from backkit import until
from daemonkit import Daemon, daemon

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST = "127.0.0.1"
SINGLE_STEP, SYSCALL, SEIZE, INTERRUPT, CONT = 9, 24, 0x4206, 0x4207, 7
SYSGOOD, EXIT_KILL = 1, 0x100000
STEPS = 300  # instructions behind a system call, at most
PLAIN = 40  # places that are tried in `make test`

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_ptrace.restype = ctypes.c_long


def ptrace(request: int, pid: int, data: int = 0) -> None:
    if _ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request}")


class Traced:
    """The guest, from its SIGSTOP on."""

    def __init__(self, argv: list[str]) -> None:
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.pid = self.process.pid
        self.alive = True
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)
        ptrace(SEIZE, self.pid, SYSGOOD | EXIT_KILL)
        self._wait()
        os.kill(self.pid, signal.SIGCONT)

    def _wait(self) -> None:
        _, status = os.waitpid(self.pid, 0x40000000)  # __WALL
        if not os.WIFSTOPPED(status):
            self.alive = False
            self.process.returncode = os.waitstatus_to_exitcode(status)

    def go(self, request: int) -> None:
        """As far as the next stop."""
        if self.alive:
            ptrace(request, self.pid)
            self._wait()

    def end(self) -> bytes:
        """Kill it, if it still lives; what it said."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            while self.alive:
                self._wait()
        out, error = self.process.stdout, self.process.stderr
        assert out is not None
        assert error is not None
        with out, error:
            return out.read() + error.read()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: install gcc")
    built = tmp_path_factory.mktemp("p") / "frontend"
    source = Path(__file__).with_name("frontend.c")
    argv = [compiler, "-Wall", "-Wextra", "-Werror", "-O1", str(source), "-o", str(built)]
    argv += [f"-I{PREFIX}/include", f"-L{PREFIX}/lib", f"-Wl,-rpath,{PREFIX}/lib", "-lxensock"]
    subprocess.run(argv, check=True)
    return str(built)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Daemon]:
    with daemon(tmp_path, "--allow=loopback") as made:
        thread = threading.Thread(target=_log, args=(made,), daemon=True)
        thread.start()
        yield made
        made.process.kill()
        thread.join(10)


def _log(made: Daemon) -> None:
    assert made.process.stderr is not None
    for line in made.process.stderr:
        made.log.append(line)


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it gets."""

    def serve(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            while data := sock.recv(1 << 16):
                sock.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = server.accept()
                threading.Thread(target=serve, args=(sock,), daemon=True).start()

    with socket.create_server((HOST, 0), backlog=128) as server:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def holds(made: Daemon) -> tuple[int, int, int]:
    """Descriptors, threads and mappings of the daemon."""
    at = Path(f"/proc/{made.process.pid}")
    maps = sum("memfd:" in line for line in (at / "maps").read_text().splitlines())
    return len(list((at / "fd").iterdir())), len(list((at / "task").iterdir())), maps


def grown(made: Daemon, before: tuple[int, int, int]) -> bool:
    return any(now > then for now, then in zip(holds(made), before, strict=True))


def places(program: str, made: Daemon, port: int) -> int:
    """How many stops at system calls there are before the guest's orderly end."""
    traced, count = Traced([program, made.url, str(port)]), 0
    while traced.alive:
        traced.go(SYSCALL)
        count += 1
    said = traced.end()
    assert said == b"done\n", said
    return count


@pytest.mark.timeout(500)
@pytest.mark.parametrize("rounds", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_at_any_instruction(program: str, served: Daemon, echo: int, rounds: int) -> None:
    """Slow: at every system call, several times; else at some of them."""
    random, pids = Random(3), []
    with Attachment(served.url, "bystander") as other, other.connected((HOST, echo)) as bystander:
        bystander.send(b"!")
        assert bystander.recv(1) == b"!"
        before = holds(served)
        total = places(program, served, echo)
        assert total > 2 * PLAIN
        for place in range(1, total * rounds, 1 if rounds > 1 else total // PLAIN):
            traced = Traced([program, served.url, str(echo)])
            pids.append(traced.pid)
            for _ in range(place % total):
                traced.go(SYSCALL)
            for _ in range(random.randrange(STEPS)):
                traced.go(SINGLE_STEP)
            traced.end()
            bystander.send(b"still there?")
            assert bystander.recv(12) == b"still there?"
            until(lambda: len(served.ask("guests")["guests"]) == 1)
            until(lambda: not grown(served, before))
    until(lambda: served.ask("guests")["guests"] == [])
    said = until(lambda: len(served.log) > 1 and "bystander" in served.log[-1] and served.log)
    of = {
        pid: [line.partition(") ")[2] for line in said if f"(pid {pid}, " in line] for pid in pids
    }
    # Who died before it said hello is not known at all.
    orders = ([], ["disconnected"], ["connected", "disconnected"])
    assert all([line.split(":")[0].strip() for line in lines] in orders for lines in of.values()), (
        of
    )
    assert sum(len(lines) == 2 for lines in of.values()) > len(pids) // 2
    assert len(said) == sum(map(len, of.values())) + 5, said  # nobody else, and nothing else
