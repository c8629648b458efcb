"""CPython's own network tests in guests: each comes to what it comes to natively."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conformance.guests import QUICK, SECONDS, SLOW, Suite, close, differing
from conformance.known import reason_in_guests
from conformance.running import missing

if TYPE_CHECKING:
    from world.internet import World

MODULES = [
    *(pytest.param(name, least) for name, least in QUICK.items()),
    *(pytest.param(name, least, marks=pytest.mark.slow) for name, least in SLOW.items()),
]


@pytest.mark.direct
@pytest.mark.relay
@pytest.mark.timeout(4 * SECONDS)
@pytest.mark.parametrize(("module", "least"), MODULES)
def test_in_guests_as_natively(
    module: str, least: int, world: World, request: pytest.FixtureRequest
) -> None:
    if why := missing(module):
        pytest.skip(why)
    suite = Suite.create(world, lambda: request.getfixturevalue("xensock"))
    runs = suite.run(module)
    try:
        for run in runs:
            words = [word for word, _ in (run.found or {}).values()]
            print(run.guest.datapath, run.place, len(words), words.count("passed"), run.mediated)
            assert words.count("passed") >= len(words) // 2 > 0
            if run.place == "host" and not run.guest.native:
                assert run.mediated >= least
        found = {t: how for t, how in differing(runs).items() if not reason_in_guests(t)}
    finally:
        close(runs)
    if found:
        # These tests have deadlines of their own, on a machine that does other things, too.
        again = suite.run(module, found)
        try:
            found = differing(again)
        finally:
            close(again)
    assert not found
