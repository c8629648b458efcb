"""CPython's own network tests, with XenSock's sockets in place of the standard ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conformance.running import QUICK, SLOW, compare, missing

if TYPE_CHECKING:
    from pathlib import Path

MODULES = [
    *(pytest.param(name, marks=pytest.mark.timeout(3 * limit)) for name, limit in QUICK.items()),
    *(
        pytest.param(name, marks=[pytest.mark.timeout(3 * limit), pytest.mark.slow])
        for name, limit in SLOW.items()
    ),
]


@pytest.mark.parametrize("module", MODULES)
def test_own_sockets_pass_what_the_kernels_pass(
    module: str, backend_url: str, tmp_path: Path
) -> None:
    if why := missing(module):
        pytest.skip(why)
    found = compare(module, backend_url, tmp_path)
    print(f"{module}: {dict(found.counts)}")
    assert found.counts["passed"] > 20
    assert not found.differing
