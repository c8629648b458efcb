"""Memory of the backend for each idle connection that a guest holds over the direct data path.

The backend's processes are those that `xensock run` started outside the guest's PID namespace.
Their proportional set size (proc(5), smaps_rollup) is read before and after the guest opens its
connections. A native program has no backend: 0 bytes. The kernel's own memory for sockets is the
same on both sides and not counted.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xensock.bench.failure import BenchError
from xensock.bench.interleave import Pair
from xensock.bench.process import GRACE, serving, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.bench.side import Setting

CLIENT = Path(__file__).with_name("hold_client.py")
SPARE = 100  # descriptors besides the connections
PATIENCE = 120.0


@contextmanager
def idle_connections(setting: Setting) -> Iterator[Pair]:
    """Bytes of the backend for each of `setting.held` connections."""
    _room_for(setting.held)
    with (
        socket.create_server((str(setting.address), 0), backlog=4096) as listener,
        _accepting(listener),
    ):
        port = listener.getsockname()[1]
        yield Pair(lambda: 0.0, lambda: _bytes_each(setting, port))


def _bytes_each(setting: Setting, port: int) -> float:
    client = [
        sys.executable, "-I", str(CLIENT), str(setting.address), str(port), str(setting.held),
    ]  # fmt: skip
    argv = setting.in_guest(client, "direct")
    with serving(argv, "ready") as front:
        assert front.stdin is not None
        before = backend_bytes(front.pid)
        front.stdin.write("open\n")
        front.stdin.flush()
        wait_for(front, f"held {setting.held}", argv, PATIENCE)
        after = backend_bytes(front.pid)
        front.stdin.write("end\n")
        front.stdin.close()
        front.wait(GRACE)
    # Memory that was free before may have been used: less than nothing is nothing.
    return max(after - before, 0) / setting.held


def backend_bytes(front: int) -> int:
    """Proportional set size of the front and its descendants outside the guest, in bytes."""
    own = os.readlink(f"/proc/{front}/ns/pid")
    total = 0
    left = [front]
    while left:
        pid = left.pop()
        if os.readlink(f"/proc/{pid}/ns/pid") != own:
            continue  # the guest's; all below it are, too
        total += pss(pid)
        for task in os.listdir(f"/proc/{pid}/task"):
            left += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return total


def pss(pid: int) -> int:
    """Proportional set size of a process, in bytes (proc(5)). Raises OSError."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise BenchError(
        f"cannot read the memory of process {pid}", "no Pss in smaps_rollup", "choose other rows"
    )


def _room_for(connections: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < connections + SPARE:
        raise BenchError(
            f"cannot hold {connections} connections",
            f"a process may open {hard} files here",
            f"raise the hard limit (ulimit -Hn {connections + SPARE}), or leave memory out (--only)",
        )


@contextmanager
def _accepting(listener: socket.socket) -> Iterator[None]:
    process = multiprocessing.get_context("fork").Process(target=hold, args=(listener,))
    process.daemon = True
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()
        process.close()


def hold(listener: socket.socket) -> None:
    """Accept connections and hold each until its other end closes, for ever."""
    import selectors

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    selector.register(listener.accept()[0], selectors.EVENT_READ)
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
