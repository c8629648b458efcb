"""Pairs of frontends and backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from pairs import Pair, held, meet

from xensock.transport.local_back import LocalListener, listen

if TYPE_CHECKING:
    from pathlib import Path

    from xensock.transport.base import Limits

Meeting = Callable[..., Pair]


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[Meeting]:
    """Makes pairs; all of them and the listeners are closed afterwards."""
    listeners: list[LocalListener] = []
    pairs: list[Pair] = []

    def make(limits: Limits | None = None, name: str = "guest") -> Pair:
        path = str(tmp_path / f"b{len(listeners)}")
        listeners.append(listen(path, limits=limits))
        pairs.append(meet(listeners[-1], path, name))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()
    for listener in listeners:
        listener.close()


@pytest.fixture
def holds() -> Callable[[], tuple[int, int]]:
    return held
