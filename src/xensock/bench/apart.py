"""A client's network and a server's, joined by a veth pair: the server is another host, as most that guests talk to."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from xensock.bench.failure import BenchError
from xensock.bench.process import PATIENCE, output_of, started, tool
from xensock.cgroups import own_cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TOOLS = ("unshare", "nsenter", "ip")
NEAR, FAR = IPv4Address("10.255.255.1"), IPv4Address("10.255.255.2")
STAY = ("sh", "-c", "echo there; exec cat")
KNOCK = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"


@dataclass(frozen=True, slots=True)
class Apart:
    """What runs a command in the client's network, and in the server's, which has the address `server`."""

    near: tuple[str, ...]
    far: tuple[str, ...]
    server: IPv4Address = FAR

    def answers(self, port: int) -> bool:
        """Whether somebody takes the client's connections there."""
        argv = [*self.near, sys.executable, "-c", KNOCK, str(self.server), str(port)]
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@contextmanager
def networks() -> Iterator[Apart]:
    """Both networks, until the block ends. An ordinary user's are in a user namespace. Raises BenchError."""
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    kept = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]

    def enter(pid: int) -> tuple[str, ...]:
        return (tool("nsenter"), f"--target={pid}", *kept, "--net", "--")

    with _cgroup() as join, _held([tool("unshare"), *own, "--net", "--", *STAY]) as near_pid:
        near = (*join, *enter(near_pid))
        with _held([*near, tool("unshare"), "--net", "--", *STAY]) as far_pid:
            apart = Apart(near, enter(far_pid))
            _ip(near, f"link add veth0 type veth peer name veth0 netns {far_pid}")
            for side, address in ((near, NEAR), (apart.far, FAR)):
                _ip(side, "link set lo up")
                _ip(side, f"address add {address}/30 dev veth0")
                _ip(side, "link set veth0 up")
            yield apart


@contextmanager
def _cgroup() -> Iterator[tuple[str, ...]]:
    """What runs a command in a cgroup of its own, as services and sessions have theirs: another host's sockets are in
    none of ours. Nothing where this user may make none."""
    try:
        made = Path(own_cgroup(), f"xensock-bench-{os.getpid()}")
        made.mkdir()
    except OSError:
        yield ()
        return
    try:
        yield ("sh", "-c", 'echo $$ >"$0" && exec "$@"', str(made / "cgroup.procs"))
    finally:
        _remove(made)


def _remove(cgroup: Path) -> None:
    """Once its last process is gone, which ended a moment ago (cgroups(7), cgroup.events)."""
    deadline = time.monotonic() + PATIENCE
    with (cgroup / "cgroup.events").open() as events:
        told = select.poll()
        told.register(events, select.POLLPRI)
        while "populated 1" in events.read() and time.monotonic() < deadline:
            told.poll(1000)
            events.seek(0)
    cgroup.rmdir()


def _ip(wrap: Sequence[str], words: str) -> None:
    output_of([*wrap, tool("ip"), *words.split()], PATIENCE)


@contextmanager
def _held(argv: Sequence[str]) -> Iterator[int]:
    """A process that does nothing in namespaces of its own, from when it is there on; its number."""
    with started(argv) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            words = process.stderr.read().strip() if process.stderr is not None else ""
            raise BenchError(
                "cannot make networks to measure in",
                words or "unshare ended",
                "run xensock doctor, which has the remedy, or choose other rows with --only",
            )
        yield process.pid
