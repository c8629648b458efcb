"""What iperf3 reports, and a small measurement between native ends."""

from __future__ import annotations

import json
import shutil

import pytest

from xensock.bench import throughput
from xensock.bench.failure import BenchError
from xensock.bench.machine import LOOPBACK
from xensock.bench.side import Setting

iperf3 = pytest.mark.skipif(shutil.which("iperf3") is None, reason="no iperf3")


def test_bytes_count_where_they_arrive() -> None:
    end = {"sum_sent": {"bits_per_second": 9e9}, "sum_received": {"bits_per_second": 8e9}}
    assert throughput.parse(json.dumps({"end": end})) == 8


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"end": {}}', '{"end": {"sum_received": {"bits_per_second": 0}}}', "[]"],
)
def test_an_empty_report_is_an_error(text: str) -> None:
    with pytest.raises(BenchError):
        throughput.parse(text)


def test_an_error_that_iperf3_reports_is_told() -> None:
    with pytest.raises(BenchError) as caught:
        throughput.parse('{"end": {}, "error": "error - no route"}')
    assert caught.value.cause == "error - no route"


def test_a_server_between_two_tests_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = json.dumps({"end": {}, "error": "error - the server is busy running a test"})
    fine = json.dumps({"end": {"sum_received": {"bits_per_second": 8e9}}})
    reports = iter([busy, fine])
    monkeypatch.setattr(throughput, "output_of", lambda argv, timeout: next(reports))
    assert throughput._gbits(["iperf3"], 1) == 8


@iperf3
@pytest.mark.parametrize("reverse", [False, True])
def test_the_native_side_is_measured(reverse: bool) -> None:
    setting = Setting("xensock", LOOPBACK, seconds=1)
    with throughput.sending(setting, "direct", 1, reverse) as pair:
        assert pair.native() > 0.01
