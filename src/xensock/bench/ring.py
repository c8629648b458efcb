"""The ring against the kernel: the same load program over libxensock, and over the kernel's sockets.

One `xensock backend` serves the guests of a measurement. What a guest sends to TCP is received by a
native server; between guests, both ends are guests of that backend, and TCP over loopback is what
they are compared with.
"""

from __future__ import annotations

import resource
import sys
import sysconfig
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xensock.bench.failure import BenchError
from xensock.bench.interleave import Pair
from xensock.bench.machine import LOOPBACK
from xensock.bench.memory import PATIENCE as HOLDING
from xensock.bench.memory import backend_bytes, pss
from xensock.bench.process import GRACE, PATIENCE, output_of, serving, started, wait_for

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    from xensock.bench.side import Setting

READY = "ready "
STREAM_CLIENT = Path(__file__).with_name("stream_client.py")
MESSAGE = 64  # bytes of a round trip and of a message
BULK = 128 * 1024
# Of the descriptors there may be (RLIMIT_NOFILE), a backend lets one guest's sockets have a part.
HELD_SHARE = 32


def load_program() -> str:
    """The path of the load program, which is installed with the package. Raises BenchError."""
    import xensock

    places = [*xensock.__path__, str(Path(sysconfig.get_path("platlib"), "xensock"))]
    for place in places:
        found = Path(place, "xensock-ringload")
        if found.is_file():
            return str(found)
    raise BenchError(
        "cannot find the load program xensock-ringload",
        f"it is not in {' or '.join(places)}",
        "install XenSock (make build)",
    )


@contextmanager
def backend(setting: Setting) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A backend that listens: its URL, and its process."""
    allowed = ["--allow", "loopback"] if setting.address.is_loopback else []
    with tempfile.TemporaryDirectory(prefix="xensock-bench-") as directory:
        url = f"local:{directory}/socket"
        argv = [setting.command, "backend", "--listen", url, *allowed]
        with serving(argv, "listening", on_stderr=True) as process:
            yield url, process


@contextmanager
def _server(address: object, *options: str) -> Iterator[str]:
    """The load program as a server, a guest's with `options`; its port."""
    argv = [load_program(), *options, "serve", str(address)]
    with started(argv) as process:
        yield wait_for(process, READY, argv).removeprefix(READY).strip()


@contextmanager
def _ends(setting: Setting, guests: bool) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """Where the two sides go: command lines up to the command, and the native and our server."""
    load = load_program()
    with ExitStack() as stack:
        url, _ = stack.enter_context(backend(setting))
        far = LOOPBACK if guests else setting.address
        native = [str(far), stack.enter_context(_server(far))]
        ours = native
        if guests:
            port = stack.enter_context(_server(setting.address, "--url", url))
            ours = [str(setting.address), port]
        yield [load, "--url", url], native, ours


@contextmanager
def throughput(setting: Setting, size: int, streams: int, guests: bool = False) -> Iterator[Pair]:
    """Gbit/s that arrive of writes of `size` bytes."""
    with _ends(setting, guests) as (guest, native, ours):
        what = [str(setting.seconds), str(size), str(streams)]
        limit = setting.seconds + PATIENCE
        yield Pair(
            lambda: gbits(output_of([guest[0], "send", *native, *what], limit)),
            lambda: gbits(output_of([*guest, "send", *ours, *what], limit)),
        )


@contextmanager
def python(setting: Setting, size: int) -> Iterator[Pair]:
    """Gbit/s that arrive of a Python program's writes, with xensock.socket and the standard one."""
    with ExitStack() as stack:
        url, _ = stack.enter_context(backend(setting))
        port = stack.enter_context(_server(setting.address))
        client = [sys.executable, "-I", str(STREAM_CLIENT), str(setting.address), port]
        argv = [*client, str(setting.seconds), str(size)]
        limit = setting.seconds + PATIENCE
        yield Pair(
            lambda: gbits(output_of(argv, limit)),
            lambda: gbits(output_of([*argv, url], limit)),
        )


@contextmanager
def messages(setting: Setting) -> Iterator[Pair]:
    """Messages of 64 bytes a second, one write each."""
    with throughput(setting, MESSAGE, 1) as pair:
        each = 1e9 / 8 / MESSAGE
        yield Pair(lambda: pair.native() * each, lambda: pair.ours() * each)


@contextmanager
def round_trips(setting: Setting, guests: bool = False) -> Iterator[Pair]:
    """Microseconds of a round trip of 64 bytes."""
    with _ends(setting, guests) as (guest, native, ours):
        what = [str(setting.trips), str(MESSAGE)]
        limit = PATIENCE + setting.trips / 1000
        yield Pair(
            lambda: float(output_of([guest[0], "rtt", *native, *what], limit)),
            lambda: float(output_of([*guest, "rtt", *ours, *what], limit)),
        )


@contextmanager
def connections(setting: Setting) -> Iterator[Pair]:
    """Connections a second, one after the other, opened and reset."""
    with _ends(setting, guests=False) as (guest, native, ours):
        limit = setting.seconds + PATIENCE
        seconds = str(setting.seconds)
        yield Pair(
            lambda: float(output_of([guest[0], "connect", *native, seconds], limit)),
            lambda: float(output_of([*guest, "connect", *ours, seconds], limit)),
        )


@contextmanager
def idle_connections(setting: Setting) -> Iterator[Pair]:
    """Bytes of backend and guest together for each connection; natively 0."""
    held = min(setting.held, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // HELD_SHARE)
    with ExitStack() as stack:
        url, process = stack.enter_context(backend(setting))
        port = stack.enter_context(_server(setting.address))
        argv = [
            load_program(), "--url", url, "hold", str(setting.address), port, str(held),
        ]  # fmt: skip
        yield Pair(lambda: 0.0, lambda: _bytes_each(argv, process.pid, held))


def _bytes_each(argv: list[str], backend_pid: int, held: int) -> float:
    with serving(argv, "ready") as guest:
        assert guest.stdin is not None
        before = backend_bytes(backend_pid) + pss(guest.pid)
        guest.stdin.write("open\n")
        guest.stdin.flush()
        wait_for(guest, f"held {held}", argv, HOLDING)
        after = backend_bytes(backend_pid) + pss(guest.pid)
        guest.stdin.write("end\n")
        guest.stdin.close()
        guest.wait(GRACE * 4)
    return max(after - before, 0) / held


def gbits(report: str) -> float:
    """Gbit/s out of bytes a second. Raises BenchError if nothing arrived."""
    found = float(report) * 8 / 1e9
    if found <= 0:
        raise BenchError("the load program moved nothing", report.strip(), "repeat it")
    return found
