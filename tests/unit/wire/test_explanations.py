"""Explanations: bytes of the reference, round trips, and what is no explanation."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.wire.errors import WireError
from xensock.wire.explanations import LONGEST, Explanation

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
explanations = st.builds(
    Explanation, st.booleans(), st.booleans(), st.integers(-4096, 0), texts, texts, texts
)


def test_bytes() -> None:
    raw = Explanation(False, False, -13, "any:25", "--allow a", "b").encode()
    assert raw == struct.pack("<IiIII", 0, -13, 6, 9, 1) + b"any:25--allow ab"
    assert Explanation(True, True).encode() == struct.pack("<IiIII", 3, 0, 0, 0, 0)


@given(explanations, st.binary(max_size=30))
def test_round_trip(one: Explanation, behind: bytes) -> None:
    assert Explanation.decode(one.encode() + behind) == (one, behind)


def test_long_texts_are_cut_between_characters() -> None:
    raw = Explanation(True, rule="ä" * LONGEST, hint="x" * (LONGEST + 1), name="ok").encode()
    found, behind = Explanation.decode(raw)
    assert (found.rule, found.hint, found.name) == ("ä" * (LONGEST // 2), "x" * LONGEST, "ok")
    assert len(raw) <= 4096
    assert not behind


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_read(raw: bytes) -> None:
    try:
        found, behind = Explanation.decode(raw)
    except WireError:
        return
    assert len(found.encode()) + len(behind) == len(raw)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        bytes(19),
        struct.pack("<IiIII", 1, 0, 1, 0, 0),
        struct.pack("<IiIII", 1, 0, LONGEST + 1, 0, 0) + bytes(LONGEST + 1),
        struct.pack("<IiIII", 1, 0, 0xFFFFFFFF, 0, 0) + bytes(100),
        struct.pack("<IiIII", 1, 0, 1, 0, 0) + b"\xff",
    ],
)
def test_no_explanations(raw: bytes) -> None:
    with pytest.raises(WireError):
        Explanation.decode(raw)
