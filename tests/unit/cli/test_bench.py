"""`xensock bench run`: a small real one, and what it says when it cannot."""

from __future__ import annotations

import json

import pytest

from xensock.cli.main import main

SMALL = ["bench", "run", "--quick", "--only", "startup,direct.rtt", "--runs", "2"]


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
