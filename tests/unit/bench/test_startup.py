"""How long a command takes."""

from __future__ import annotations

import sys

import pytest

from xensock.bench.failure import BenchError
from xensock.bench.startup import milliseconds


def test_a_command_takes_its_time() -> None:
    nap = [sys.executable, "-S", "-c", "import time; time.sleep(0.2)"]
    assert 200 <= milliseconds(nap) < 20_000


def test_a_failure_is_not_a_time() -> None:
    with pytest.raises(BenchError) as caught:
        milliseconds([sys.executable, "-S", "-c", "import sys; sys.exit('broken')"])
    assert caught.value.cause == "broken"
