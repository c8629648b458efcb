"""Shapes of documents: what is no fault, and each fault with its place and a suggestion."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.policy.file import PolicyFile
from xensock.policy.shape import check, path_text


def faults(value: object) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    good = check(value, PolicyFile, lambda *fault: found.append(fault))
    assert good is not bool(found)
    return found


@pytest.mark.parametrize(
    ("value", "path", "key", "message", "hint"),
    [
        ({"ruel": []}, ("ruel",), True, "unknown key 'ruel' at the top", "did you mean rule?"),
        ({"x": 1}, ("x",), True, "unknown key 'x' at the top", "known are close_on_reload, "),
        ({"version": 2}, ("version",), False, "version: 2 is not 1", "write 1"),
        ({"version": True}, ("version",), False, "version: True is not 1", "write 1"),
        (
            {"close_on_reload": "true"},
            ("close_on_reload",),
            False,
            "close_on_reload must be true or false, not text",
            "write true without quotes",
        ),
        ({"rule": {}}, ("rule",), False, "rule must be a list, not a table", "The rules."),
        (
            {"rule": [{"allow": ["a", 3]}]},
            ("rule", 0, "allow", 1),
            False,
            "rule 1.allow 2 must be text, not a whole number",
            "What is allowed",
        ),
        ({"rule": [{"allow": ""}]}, ("rule", 0, "allow"), False, "the text is empty", "What is"),
        (
            {"rule": [{"limit": {"concurrent": "3"}}]},
            ("rule", 0, "limit", "concurrent"),
            False,
            "must be a whole number, not text",
            "write 3 without quotes",
        ),
        (
            {"rule": [{"limit": {"concurrent": 0}}]},
            ("rule", 0, "limit", "concurrent"),
            False,
            "0 is less than 1",
            "Connections that are open",
        ),
        (
            {"rule": [{"limit": {"rate": "1T"}}]},
            ("rule", 0, "limit", "rate"),
            False,
            "'1T' is not understood",
            "Bytes per second",
        ),
        (
            {"rule": [{"verify": "sin"}]},
            ("rule", 0, "verify"),
            False,
            "'sin' is not ",
            "did you mean 'sni'?",
        ),
    ],
)
def test_each_fault(value: object, path: object, key: bool, message: str, hint: str) -> None:
    ((found, at_key, said, advice),) = faults(value)
    assert (found, at_key) == (path, key)
    assert message in said
    assert advice.startswith(hint)


def test_all_faults_are_told() -> None:
    value = {"version": 3, "rule": [{"allow": 1}, {"alow": "x"}, {"deny": "x"}], "grups": {}}
    assert len(faults(value)) == 4


VALUES = st.recursive(
    st.text(max_size=3) | st.integers() | st.booleans() | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["allow", "deny", "limit", "rate", "labels", "x"]), inner)
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["rule", "groups", "expect", "version"]), VALUES))
def test_it_agrees_with_msgspec(value: dict[str, object]) -> None:
    """The oracle tells only the first fault, and not as a person would."""
    try:
        msgspec.convert(value, PolicyFile)
        good = True
    except msgspec.ValidationError:
        good = False
    assert (not faults(value)) == good


def test_paths_as_people_write_them() -> None:
    assert path_text(()) == "the file"
    assert path_text(("rule", 2, "limit", "rate")) == "rule 3.limit.rate"
