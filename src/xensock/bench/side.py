"""The two sides of a comparison: a program run natively, and the same program in a guest."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xensock.bench.failure import BenchError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address

    from xensock.bench.interleave import Pair  # noqa: F401 - named in documentation


def xensock() -> str:
    """The path of the `xensock` command: beside this Python, else in PATH.

    Raises BenchError if there is none.
    """
    beside = Path(sys.executable).with_name("xensock")
    found = str(beside) if beside.is_file() else shutil.which("xensock")
    if found is None:
        raise BenchError(
            "cannot find the command xensock",
            f"it is neither beside {sys.executable} nor in PATH",
            "install XenSock (make build) and run .venv/bin/xensock bench run",
        )
    return found


@dataclass(frozen=True, slots=True)
class Setting:
    """What all measurements share: the command, the server's address, and their size.

    `seconds` a throughput or request measurement lasts; `trips` round trips and `held` idle
    connections are what those rows count.
    """

    command: str
    address: IPv4Address
    seconds: int = 3
    trips: int = 20_000
    held: int = 10_000

    def in_guest(
        self, argv: Sequence[str], datapath: str = "auto", options: Sequence[str] = ()
    ) -> list[str]:
        """The command line that runs `argv` in a guest, with further options of `xensock run`."""
        allowed = ["--allow", "loopback"] if self.address.is_loopback else []
        return [self.command, "run", "--datapath", datapath, *allowed, *options, "--", *argv]
