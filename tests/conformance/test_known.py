"""What own sockets do not pass is little, has a reason, and is in the documents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conformance.known import KNOWN, is_foreign, reason
from conformance.running import MODULES, listed, missing

ROOT = Path(__file__).parents[2]
MOST = 0.05


def test_exempt_tests_are_few() -> None:
    if why := next(filter(None, map(missing, MODULES)), ""):
        pytest.skip(why)
    ours = [test for module in MODULES for test in listed(module) if not is_foreign(test)]
    exempt = [test for test in ours if reason(test)]
    print(f"{len(exempt)} of {len(ours)} tests are exempt")
    assert len(exempt) <= MOST * len(ours)
    unused = [pattern for pattern, why in KNOWN.items() if why not in map(reason, exempt)]
    assert not unused


def test_the_document_has_the_table() -> None:
    subprocess.run([sys.executable, str(ROOT / "tools" / "exempt.py"), "--check"], check=True)
