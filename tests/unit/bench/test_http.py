"""What wrk reports, and a server that begins and ends with the measurement."""

from __future__ import annotations

import os
import shutil
import socket

import pytest

from xensock.bench import http
from xensock.bench.failure import BenchError
from xensock.bench.machine import LOOPBACK
from xensock.bench.side import Setting

PATH = f"{os.environ['PATH']}:/usr/sbin"
needed = pytest.mark.skipif(
    not all(shutil.which(name, path=PATH) for name in ("wrk", "nginx")), reason="no wrk or nginx"
)

REPORT = """\
Running 1s test @ http://192.0.2.2:80/
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     0.98ms    0.86ms   7.44ms   79.37%
    Req/Sec     7.90k     2.58k   12.41k    65.00%
  15753 requests in 2.01s, 2.16MB read
{trouble}Requests/sec:   7852.39
Transfer/sec:      1.08MB
"""


def test_requests_per_second_are_read() -> None:
    assert http.parse(REPORT.format(trouble="")) == 7852.39


@pytest.mark.parametrize(
    "trouble",
    [
        "  Socket errors: connect 8, read 0, write 0, timeout 0\n",
        "  Non-2xx or 3xx responses: 15753\n",
    ],
)
def test_requests_that_failed_are_an_error(trouble: str) -> None:
    with pytest.raises(BenchError) as caught:
        http.parse(REPORT.format(trouble=trouble))
    assert caught.value.cause == trouble.strip()


def test_no_request_is_an_error() -> None:
    with pytest.raises(BenchError):
        http.parse("")
    with pytest.raises(BenchError):
        http.parse("Requests/sec:      0.00\n")


@needed
@pytest.mark.parametrize("kept", [True, False])
def test_the_native_side_is_measured(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ports: list[int] = []

    def free_port(address: object, choose=http.free_port) -> int:
        ports.append(choose(address))
        return ports[-1]

    monkeypatch.setattr(http, "free_port", free_port)
    with http.requests(Setting("xensock", LOOPBACK, seconds=1), "direct", kept) as pair:
        assert pair.native() > 10
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]), timeout=5).close()
