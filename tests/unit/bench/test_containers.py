"""What `xensock bench containers` needs, and what it says without that; tests/containers/test_start.py measures."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from xensock.bench import container_rows, containers
from xensock.bench.failure import BenchError
from xensock.bench.interleave import Samples
from xensock.bench.result import Result
from xensock.bench.side import Setting

if TYPE_CHECKING:
    from pathlib import Path

SETTING = Setting("xensock", IPv4Address("127.0.0.1"))


@pytest.mark.parametrize("known", ['{"runc":{"path":"runc"}}', "null", "none at all"])
def test_docker_without_the_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    engine = tmp_path / "docker"
    engine.write_text(f"#!/bin/sh\necho '{known}'\n")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(BenchError) as caught, containers.docker(SETTING):
        pass
    assert "does not know the runtime xensock" in caught.value.what
    assert "xensock install --docker" in caught.value.hint


def test_an_engine_that_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("docker", "podman"):
        engine = tmp_path / name
        engine.write_text("#!/bin/sh\necho 'nobody is there' >&2\nexit 1\n")
        engine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for row in container_rows.ROWS:
        with pytest.raises(BenchError) as caught, row.measure(SETTING):
            pass
        assert caught.value.cause == "nobody is there"


@pytest.mark.parametrize(("ours", "met"), [(360.0, True), (360.1, False)])
def test_the_target_is_what_is_added(ours: float, met: bool) -> None:
    assert [row.name for row in container_rows.ROWS] == list(container_rows.TARGETS)
    for name, target in container_rows.TARGETS.items():
        result = Result.of(name, "ms", False, Samples([300.0], [ours]))
        assert target.met(result) == met
        assert str(target) == "≤ 60 added"
