"""Programs that measure or are measured: run to their end, or serving in the background."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from xensock.bench.failure import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Where Debian keeps nginx, which an ordinary user's PATH lacks.
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
# Debian's, where they are not called as their program.
PACKAGES = {
    "nginx": "nginx-light", "docker": "docker.io", "busybox": "busybox-static",
    "unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2",
}  # fmt: skip
GRACE = 5.0
PATIENCE = 20.0


def tool(name: str) -> str:
    """The path of a program that is not ours. Raises BenchError naming Debian's package of it."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SBIN}")
    if found is None:
        package = PACKAGES.get(name, name)
        raise BenchError(
            f"cannot measure without {name}",
            "it is not installed",
            f"sudo apt-get install {package}, or choose other rows with --only",
        )
    return found


def output_of(argv: Sequence[str], timeout: float) -> str:
    """Run to the end and return what was printed. Raises BenchError if it fails or hangs."""
    with started(argv, subprocess.DEVNULL) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise BenchError(
                f"{_words(argv)} did not end",
                f"it was given {timeout:.0f} s",
                "run that command by itself to see why",
            ) from None
        if process.returncode != 0:
            raise failed(argv, process.returncode, err or out)
        return out


@contextmanager
def serving(
    argv: Sequence[str], says: str, *, on_stderr: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A program in the background, from when it has printed a line that contains `says` on.

    Raises BenchError if it ends or does not say so in time.
    """
    with started(argv) as process:
        wait_for(process, says, argv, on_stderr=on_stderr)
        yield process


def wait_for(
    process: subprocess.Popen[str],
    says: str,
    argv: Sequence[str],
    patience: float = PATIENCE,
    *,
    on_stderr: bool = False,
) -> str:
    """Read the program's output up to a line that contains `says`; that line. Raises BenchError."""
    out = process.stderr if on_stderr else process.stdout
    assert out is not None
    deadline = time.monotonic() + patience
    line = ""
    while not line.endswith("\n") or says not in line:
        if line.endswith("\n"):
            line = ""
        # One byte at a time, unbuffered: a buffer would hide from poll what it holds.
        if not _readable(out, deadline - time.monotonic()):
            raise BenchError(
                f"{_words(argv)} does not get ready",
                f"it did not print “{says}” within {patience:.0f} s",
                "run that command by itself to see why",
            )
        byte = os.read(out.fileno(), 1)
        if not byte:
            raise failed(argv, process.wait(GRACE), _errors(process) or line)
        line += byte.decode(errors="replace")
    return line


def failed(argv: Sequence[str], status: int, words: str) -> BenchError:
    """The error of a program that ended with another status than 0."""
    lines = [line for line in words.splitlines() if line.strip()]
    return BenchError(
        f"{_words(argv)} failed",
        "; ".join(lines[-3:]) or f"exit status {status}",
        "run that command by itself to see why",
    )


@contextmanager
def started(argv: Sequence[str], stdin: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """A program that is ended with the block."""
    with subprocess.Popen(
        argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    # A front passes it on to its guest's program.
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _readable(stream: IO[str], seconds: float) -> bool:
    return bool(select.select([stream], [], [], max(seconds, 0))[0])


def _errors(process: subprocess.Popen[str]) -> str:
    return process.stderr.read() if process.stderr is not None else ""


def _words(argv: Sequence[str]) -> str:
    return " ".join([os.path.basename(argv[0]), *argv[1:]])
