"""Go's own tests of `net` and `net/http` in guests: each comes to what it comes to natively."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from conformance.golang import PACKAGES, SECONDS, GoSuite, missing, moved, outcomes
from conformance.guests import close, differing
from conformance.known import reason_in_guests

if TYPE_CHECKING:
    from world.internet import World


@pytest.fixture(scope="module")
def suite(world: World, request: pytest.FixtureRequest) -> GoSuite:
    if why := missing():
        pytest.skip(why)
    return GoSuite.create(world, lambda: request.getfixturevalue("xensock"))


@pytest.mark.direct
@pytest.mark.relay
@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS)
@pytest.mark.parametrize(("package", "least"), PACKAGES.items())
def test_in_guests_as_natively(package: str, least: int, suite: GoSuite) -> None:
    runs = suite.run(package)
    try:
        for run in runs:
            words = [word for word, _ in (run.found or {}).values()]
            print(run.guest.datapath, run.place, len(words), words.count("passed"), run.mediated)
            assert words.count("passed") > 20 * words.count("failed")
            if run.place == "host" and not run.guest.native:
                assert run.mediated >= least
        found = {t: how for t, how in differing(runs).items() if not reason_in_guests(t)}
    finally:
        close(runs)
    if found:
        # These tests have deadlines of their own, on a machine that does other things, too.
        again = suite.run(package, found)
        try:
            found = differing(again)
        finally:
            close(again)
    assert not found


def test_addresses_are_moved() -> None:
    text = '{"tcp", "127.0.0.1:0", IPv4(127, 0, 0, 1)}, "[::1]:80", "::1", "fe80::1"'
    assert moved(text, "192.0.2.1", "2001:db8::1") == (
        '{"tcp", "192.0.2.1:0", IPv4(192, 0, 2, 1)}, "[2001:db8::1]:80", "2001:db8::1", "fe80::1"'
    )


def test_outcomes_are_read() -> None:
    said = "=== RUN   TestA\n    --- PASS: TestA/b (0.00s)\nnoise--- SKIP: TestC (1.20s)\n"
    assert outcomes(said) == {"TestA/b": ("passed", ""), "TestC": ("skipped", "")}
