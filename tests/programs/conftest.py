"""What every program's calls looked like over the relay, they look like over rings."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from world.runner import KEPT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.runner import Guest

COMPARED = {"relay", "ring"}
# Ports that the kernel or the test chose: another run has others.
CHOSEN = re.compile(r"(?<=:)(?:\d{5}|[2-9]\d{3})\b")
_seen: dict[str, dict[str, set[tuple[str, ...]]]] = {}


@pytest.fixture(autouse=True)
def _traces_are_alike(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where a test has run over both: the same calls, names, decisions with their reasons, and errno.

    Each kind of call once: how often a program tries, and the order in which its threads call, differs natively, too.
    """
    if "guest" not in request.fixturenames:
        yield
        return
    guest: Guest = request.getfixturevalue("guest")  # now, so that it ends after this
    yield
    if guest.datapath not in COMPARED:
        return
    key = re.sub(r"\b(relay|ring)\b", "*", request.node.nodeid)
    kinds = {tuple(CHOSEN.sub("PORT", str(call[name])) for name in KEPT) for call in guest.calls}
    runs = _seen.setdefault(key, {})
    runs[guest.datapath] = kinds
    if runs.keys() == COMPARED:
        for path, other in (("relay", "ring"), ("ring", "relay")):
            only = sorted(runs[path] - runs[other])
            assert only == [], f"recorded over {path} only"
