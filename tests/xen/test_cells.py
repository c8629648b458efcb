"""Frontends and backends in real Xen domains, under emulation: each pair does what all must do (guest/probe.py)."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from machine import Failed, Machine
from payload import build

BED = Path(os.environ.get("XENSOCK_XEN_BED", "/nowhere"))
SUM = "3b339341a0fd134c46cb63db09c0c5c9665c94bce70a5981eca0134556f183a5"  # of 16 MiB, see guest/peer.py
SECONDS = 420


@dataclass(frozen=True)
class Cell:
    """backend, frontend: "linux" or "xensock"; kind: of the domU."""

    back: str
    front: str
    kind: str
    cpus: int

    def __str__(self) -> str:
        return f"{self.front}-front.{self.back}-back.{self.kind}.{self.cpus}"


CELLS = [
    Cell("xensock", "linux", "pv", 1),
    Cell("xensock", "xensock", "pv", 1),
    Cell("xensock", "linux", "pv", 2),
    Cell("xensock", "linux", "pvh", 1),
    Cell("xensock", "xensock", "pvh", 2),
]


@pytest.fixture(scope="module")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("payload")
    build(BED, folder)
    return folder


def ran(payload: Path, scratch: Path, cell: Cell) -> str:
    """Everything that was said. A machine that does not come up is tried once more: emulation has its moods."""
    for attempt in (1, 2):
        try:
            with Machine(BED, payload, scratch, cpus=1) as machine:
                words = f"{cell.back} {cell.kind} {cell.cpus} {cell.front}-front.sh"
                return machine.run(f"sh /payload/scenario.sh {words}", SECONDS)[1]
        except Failed:
            if attempt == 2:
                raise
    raise AssertionError


@pytest.mark.timeout(2 * SECONDS + 300)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_pair_does_what_every_pair_must(payload: Path, tmp_path: Path, cell: Cell) -> None:
    said = ran(payload, tmp_path, cell)
    found = dict(re.findall(r"^(\w+) ok ?(.*?) *$", said, re.MULTILINE))
    assert "failed" not in re.sub(r"module verification failed.*", "", said), said
    assert found.keys() == {
        "connect", "echo", "upload", "download", "refused", "listen", "in_use", "in_flight", "many"
    }, said  # fmt: skip
    assert "DOMU-DONE 0" in said, said
    assert found["refused"] == "EACCES ECONNREFUSED"
    assert found["listen"] == "hello"
    # Linux's frontend does not tell what bind and listen were answered; that the backend refused is in its trace.
    assert found["in_use"] == ("bound" if cell.front == "linux" else "EADDRINUSE")
    assert f"sink 16777216 {SUM}" in said
    assert "sink 524288 " in said
    if cell.back == "xensock":
        assert re.search(r"bind\(198\.51\.100\.1:7001\) = -1 EADDRINUSE", said)
        assert re.search(r"connect\(198\.51\.100\.1:7999\) = -1 EACCES +deny", said)
        assert re.search(r"xensock backend: guest .*disconnected", said)
