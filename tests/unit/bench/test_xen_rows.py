"""The rows of `xensock bench xen`, over a backend of this host."""

from __future__ import annotations

import socket
import threading
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from daemonkit import daemon
from xensock.bench import xen_far, xen_rows
from xensock.bench.failure import BenchError
from xensock.bench.session import measure
from xensock.bench.side import Setting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL = xen_rows.Size(20, 100_000, 3)
SETTING = Setting("", IPv4Address("127.0.0.1"))


@pytest.fixture
def far() -> Iterator[tuple[str, int]]:
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=xen_far.serve, args=(listener,))
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def test_every_row_has_figures_of_both_sides(tmp_path: Path, far: tuple[str, int]) -> None:
    with daemon(tmp_path, "--allow", "loopback") as made:
        rows = xen_rows.rows(far, made.url, SMALL)
        results = measure(rows, SETTING, 2, lambda _: None)
    assert [each.name for each in results] == ["xen.rtt", "xen.out", "xen.in", "xen.connect"]
    assert all(each.native > 0 and each.ours > 0 and each.runs == 2 for each in results)
    assert xen_rows.TARGETS.keys() <= {each.name for each in results}


def test_no_backend(tmp_path: Path, far: tuple[str, int]) -> None:
    row = xen_rows.rows(far, f"local:{tmp_path}/none", SMALL)[0]
    with pytest.raises(BenchError, match="cannot reach the backend"):
        measure([row], SETTING, 1, lambda _: None)


def test_no_far_end(tmp_path: Path) -> None:
    with socket.socket() as held, daemon(tmp_path, "--allow", "loopback") as made:
        held.bind(("127.0.0.1", 0))
        row = xen_rows.rows(held.getsockname(), made.url, SMALL)[0]
        with pytest.raises(BenchError, match="the far end") as caught:
            measure([row], SETTING, 1, lambda _: None)
    assert "--serve" in caught.value.hint
