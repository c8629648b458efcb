"""HTTP requests per second: wrk asks, nginx answers.

nginx runs natively, with one worker and a fixed small answer; wrk is the side that is measured.
"""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from xensock.bench.apart import networks
from xensock.bench.failure import BenchError
from xensock.bench.interleave import Pair
from xensock.bench.machine import free_port
from xensock.bench.process import GRACE, PATIENCE, failed, output_of, tool

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from ipaddress import IPv4Address

    from xensock.bench.apart import Apart
    from xensock.bench.side import Setting

CONNECTIONS = 8
CONFIG = """\
{user}
daemon off;
master_process off;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {listen};
        location / {{ return 200 "XenSock\\n"; }}
    }}
}}
"""


@contextmanager
def requests(setting: Setting, datapath: str, kept: bool) -> Iterator[Pair]:
    """Requests over kept-alive connections, or each over a new connection."""
    with server(setting.address) as port:
        argv = _wrk(setting, port, kept)
        limit = setting.seconds + PATIENCE
        yield Pair(
            lambda: parse(output_of(argv, limit)),
            lambda: parse(output_of(setting.in_guest(argv, datapath), limit)),
        )


@contextmanager
def audited(setting: Setting) -> Iterator[Pair]:
    """Requests of a guest to another host, each over a new connection: without an audit log, and with one."""
    with (
        networks() as apart,
        server(apart.server, apart) as port,
        _logged(replace(setting, address=apart.server), port, apart.near) as pair,
    ):
        yield pair


@contextmanager
def audited_here(setting: Setting) -> Iterator[Pair]:
    """The same to a server in the host's own network, where the kernel tells of both ends of each connection."""
    with server(setting.address) as port, _logged(setting, port, ()) as pair:
        yield pair


@contextmanager
def _logged(setting: Setting, port: int, wrap: Sequence[str]) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory() as directory:
        argv = _wrk(setting, port, kept=False)
        limit = setting.seconds + PATIENCE
        log = ["--audit", str(Path(directory, "audit"))]
        yield Pair(
            lambda: parse(output_of([*wrap, *setting.in_guest(argv, "direct")], limit)),
            lambda: parse(output_of([*wrap, *setting.in_guest(argv, "direct", log)], limit)),
        )


def new_connections(setting: Setting, port: int) -> list[str]:
    """The command that asks for each answer over a new connection."""
    return _wrk(setting, port, kept=False)


def _wrk(setting: Setting, port: int, kept: bool) -> list[str]:
    close = [] if kept else ["-H", "Connection: close"]
    return [
        tool("wrk"), "-t", "1", "-c", str(CONNECTIONS), "-d", f"{setting.seconds}s", *close,
        f"http://{setting.address}:{port}/",
    ]  # fmt: skip


@contextmanager
def server(address: IPv4Address, apart: Apart | None = None) -> Iterator[int]:
    """nginx in the background, in the server's network if there are two; its port."""
    import subprocess

    nginx, port = tool("nginx"), 8080 if apart else free_port(address)
    with tempfile.TemporaryDirectory(prefix="xensock-bench-") as directory:
        config = Path(directory, "nginx.conf")
        # An ordinary user is root in their networks, and nginx would be nobody, who is not there.
        user = "user root;" if apart and os.geteuid() else ""
        # While a log listens, the kernel makes messages of all sockets of the families that its guest uses, in
        # whatever network they are. Those of another host are not among them: here, they are of the other family.
        dual = apart is not None and Path("/proc/net/if_inet6").exists()
        listen = f"[::]:{port} ipv6only=off" if dual else f"{address}:{port}"
        config.write_text(CONFIG.format(user=user, directory=directory, listen=listen))
        argv = [*(apart.far if apart else ()), nginx, "-p", directory, "-c", str(config)]
        with subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            try:
                deadline = time.monotonic() + PATIENCE
                while not (apart.answers(port) if apart else _answers(address, port)):
                    if process.poll() is not None or time.monotonic() > deadline:
                        words = process.stderr.read() if process.stderr else b""
                        raise failed(argv, process.returncode or 0, words.decode(errors="replace"))
                    time.sleep(0.01)
                yield port
            finally:
                process.terminate()
                try:
                    process.wait(GRACE)
                except subprocess.TimeoutExpired:
                    process.kill()


def _answers(address: IPv4Address, port: int) -> bool:
    try:
        with socket.create_connection((str(address), port), timeout=PATIENCE):
            return True
    except ConnectionRefusedError:
        return False


def parse(report: str) -> float:
    """Requests per second, from what wrk prints. Raises BenchError if any failed."""
    found = re.search(r"^Requests/sec:\s+([\d.]+)", report, re.M)
    trouble = re.search(r"^\s*(Socket errors: .*|Non-2xx .*)", report, re.M)
    if found is None or trouble is not None or float(found[1]) == 0:
        raise BenchError(
            "requests failed while measuring",
            trouble[1] if trouble else "wrk counted none",
            "repeat on a machine with less load and free ports (ss -s shows them)",
        )
    return float(found[1])
