"""Processes as tests see them: what is installed, who runs a program, is it alive, end it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ORDINARY = 54321  # the id of the world's ordinary user
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def eventually(check, timeout: float = 10.0, what: str = "", interval: float = 0.01):
    """The first true answer of `check()`, asked until `timeout` seconds are over."""
    deadline = time.monotonic() + timeout
    while True:
        answer = check()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout:g} s: {what or check}")
        time.sleep(interval)


def program(name: str) -> str | None:
    """Where a program is, the sbin directories included, or None."""
    return shutil.which(name, path=PATH)


def network_of(pid: int | str) -> str:
    """The identity of a process's network namespace, "" once the process is gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process runs: a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def served_by(holder: subprocess.Popen) -> int:
    """The backend that runs behind a holder, which may be a process below that one."""

    def children(pid: int) -> list[int]:
        try:
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return []
        return [each for child in found for each in (int(child), *children(int(child)))]

    def held() -> int:
        for pid in children(holder.pid):
            try:
                if Path(f"/proc/{pid}/comm").read_text() == "xs-keeper\n":
                    continue  # has the environment of a backend, which it may outlive
                if b"XENSOCK_HELD=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    return pid
            except OSError:
                continue
        return 0

    return eventually(held, 30, "a backend behind the holder")


def describe(pid: int) -> str:
    """A process as one line for a person."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return f"{pid}: " + " ".join(word.decode(errors="replace") for word in words)[:200]
    return f"{pid}: gone"


def stop(process: subprocess.Popen[Any], grace: float = 5.0) -> int:
    """End a process politely, then by force with its whole process group; reap it, close its pipes.

    Returns its exit status as subprocess reports it.
    """
    try:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return process.wait(10)
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def needs(*names: str) -> pytest.MarkDecorator:
    """A mark that skips a test, and says why, where one of these programs is missing."""
    absent = [name for name in names if program(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}: run tools/prepare")


@dataclass(frozen=True, slots=True)
class User:
    """Who a program runs as; `home` is a directory of theirs, `runtime` their XDG_RUNTIME_DIR.

    `seen` is their id as the tests see it. It differs from `uid` where the tests run in a user
    namespace with one id only (tools/world): there the user lives in another one below it.
    """

    name: str
    uid: int
    gid: int
    home: Path
    runtime: Path
    seen: int

    def own(self, path: Path | int) -> None:
        """Give a file, or an open one, to the user. Raises OSError."""
        os.chown(path, self.seen, self.seen)

    def become(self) -> list[str]:
        """The beginning of a command that runs as the user, by exec alone."""
        if self.seen == self.uid:
            ids = [f"--reuid={self.uid}", f"--regid={self.gid}"]
            return ["setpriv", *ids, "--clear-groups", "--"]
        # Without capabilities: exec takes them from whoever is not 0 (user_namespaces(7)).
        return ["unshare", "--user", f"--map-user={self.uid}", f"--map-group={self.gid}", "--"]


def has_id(number: int) -> bool:
    """Whether our user namespace has this user and group id (user_namespaces(7), uid_map)."""

    def mapped(file: str) -> bool:
        lines = (line.split() for line in Path(f"/proc/self/{file}").read_text().splitlines())
        return any(int(a) <= number < int(a) + int(count) for a, _, count in lines)

    return mapped("uid_map") and mapped("gid_map")


def needs_users() -> pytest.MarkDecorator:
    """A mark that skips a test of a program that changes its user where there is no other one."""
    return pytest.mark.skipif(
        not has_id(ORDINARY), reason="needs several user ids: root, or newuidmap(1) and subuid(5)"
    )
