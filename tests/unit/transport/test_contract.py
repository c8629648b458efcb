"""The local transport holds what every transport must (xensock.testing.transports)."""

from __future__ import annotations

from typing import Any

import pytest

from xensock.testing.transports import CHECKS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_local(check: Any, meeting: Any) -> None:
    pair = meeting()
    check(pair.front, pair.back, pair.settle)
