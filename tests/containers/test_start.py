"""What our step costs the start of a container, beside the engine's own runtime."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines import Engine

PAIRS = 9


@pytest.mark.parametrize("engine", ["docker", "podman"], indirect=True)
def test_a_start_is_hardly_longer(engine: Engine, record_property) -> None:
    def taken(run: Callable[[], object]) -> float:
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin

    pairs = [
        (
            taken(lambda: engine.plain.run("box", "true")),
            taken(lambda: engine.run("box", "true")),
        )
        for _ in range(PAIRS)
    ]
    plain, ours = (statistics.median(each) for each in zip(*pairs, strict=True))
    more = statistics.median(after - before for before, after in pairs)
    record_property("more_ms", round(1000 * more, 1))
    assert ours < 1.5 * plain, pairs
