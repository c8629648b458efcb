"""`xensock bench run`: a small real one, and what it says when it cannot."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

import guestkit
from xensock.cli.main import main

if TYPE_CHECKING:
    from pathlib import Path

SMALL = ["bench", "run", "--quick", "--only", "startup,direct.rtt", "--runs", "2"]


needs_guests = pytest.mark.skipif(bool(guestkit.missing()), reason=guestkit.missing() or "-")


@needs_guests
def test_a_small_bench_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    assert report["schema"] == 1
    assert report["machine"]["kernel"]
    rows = {row["name"]: row for row in report["results"]}
    assert list(rows) == ["direct.rtt", "startup"]
    for row in rows.values():
        assert row["runs"] == 2
        assert row["ratio"] == pytest.approx(row["native"] / row["ours"], rel=1e-3)
    # A guest cannot start faster than its program alone.
    assert 0 < rows["startup"]["ratio"] < 1


@needs_guests
def test_a_small_bench_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "run", "--quick", "--runs", "1", "--only", "startup"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["row", "unit", "native", "xensock", "ratio", "spread", "target"]
    assert lines[3].split()[:2] == ["startup", "ms"]
    assert "≤ 250" in lines[3]


def test_an_unknown_row_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "run", "--only", "startpu"]) == 2
    assert capsys.readouterr().err == "error: no such row: startpu\nhint: did you mean startup?\n"


def test_a_missing_tool_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xensock.bench.process.SBIN", "")
    monkeypatch.setenv("PATH", "")
    assert main(["bench", "run", "--only", "direct.throughput.1"]) == 1
    err = capsys.readouterr().err
    assert "cannot measure without iperf3" in err
    assert "apt-get install iperf3" in err


def test_the_ring_as_json_and_as_a_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("xensock.bench.ring_rows.PLOT_SIZES", (1024, 65536))
    picture = tmp_path / "ring.svg"
    argv = ["bench", "ring", "--quick", "--runs", "1", "--only", "ring.tcp.rtt,ring.guests.rtt"]
    assert main([*argv, "--json", "--plot", str(picture)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    names = [row["name"] for row in json.loads(out)["results"]]
    assert names == ["ring.tcp.rtt", "ring.guests.rtt"]
    assert picture.read_text().startswith("<svg")


def test_a_picture_that_cannot_be_written_is_said_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bench", "ring", "--plot", str(tmp_path / "no" / "file.svg")]) == 2
    err = capsys.readouterr().err
    assert "cannot write" in err
    assert "hint: " in err


@pytest.mark.parametrize(
    "address", ["7007", "192.0.2.1", "192.0.2.1:0", "host:7", "192.0.2.1:99999"]
)
def test_an_address_that_is_none(capsys: pytest.CaptureFixture[str], address: str) -> None:
    assert main(["bench", "xen", address]) == 2
    assert "hint: write it like 192.0.2.1:7007" in capsys.readouterr().err


def test_a_far_end_that_cannot_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "xen", "--serve", "192.0.2.1:7007"]) == 1
    assert "error: cannot serve at 192.0.2.1:7007" in capsys.readouterr().err


def test_no_device_to_measure(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = ["bench", "xen", "127.0.0.1:7007", "--backend", f"local:{tmp_path}/none", "--quick"]
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert "cannot reach the backend" in err
    assert "hint: see docs/xen.md" in err
