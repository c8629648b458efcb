"""The fixture of a backend in the test's process, for conftest.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backkit import Serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def serving() -> Iterator[Serving]:
    with Serving() as made:
        yield made
