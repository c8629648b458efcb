"""Programs run by the bench: their output, their failures, none left behind."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from xensock.bench.failure import BenchError
from xensock.bench.process import output_of, serving, tool

SERVER = "import sys, time; print('warming'); print('ready now', flush=True); sys.stdin.read()"


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_output_is_returned() -> None:
    assert output_of(python("print('seen')"), 20) == "seen\n"


def test_a_failure_quotes_the_program() -> None:
    with pytest.raises(BenchError) as caught:
        output_of(python("import sys; sys.exit('no such luck')"), 20)
    assert caught.value.cause == "no such luck"
    assert caught.value.hint


def test_a_program_that_hangs_is_ended() -> None:
    with pytest.raises(BenchError, match="did not end"):
        output_of(python("import time; time.sleep(60)"), 0.2)


def test_a_server_is_awaited_and_ended() -> None:
    with serving(python(SERVER), "ready") as process:
        assert process.poll() is None
    assert process.returncode == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_server_that_fails_is_quoted() -> None:
    with (
        pytest.raises(BenchError) as caught,
        serving(python("import sys; sys.exit('address in use')"), "ready"),
    ):
        pass
    assert caught.value.cause == "address in use"


def test_a_tool_is_found_or_its_package_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tool("true").endswith("/true")
    monkeypatch.setattr("xensock.bench.process.SBIN", "")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchError) as caught:
        tool("nginx")
    assert "nginx-light" in caught.value.hint
