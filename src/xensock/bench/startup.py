"""Start-up: from the command line to the exit status of a program that does nothing."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xensock.bench.interleave import Pair
from xensock.bench.process import PATIENCE, failed, tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xensock.bench.side import Setting


@contextmanager
def startup(setting: Setting) -> Iterator[Pair]:
    """Milliseconds `true` takes; natively that is fork and exec."""
    true = [tool("true")]
    guest = setting.in_guest(true)
    # The first run pays for bytecode and caches that all later ones find.
    milliseconds(guest)
    yield Pair(lambda: milliseconds(true), lambda: milliseconds(guest))


def milliseconds(argv: Sequence[str]) -> float:
    """How long the command takes. Raises BenchError if it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    took = (time.perf_counter() - start) * 1e3
    if done.returncode != 0:
        raise failed(argv, done.returncode, done.stdout)
    return took
