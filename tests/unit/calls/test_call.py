"""The vocabulary is frozen, slotted, and compares with plain strings."""

from dataclasses import FrozenInstanceError

import pytest

from xensock.calls import Caller, Decision, Protocol, Verb


def test_words_are_strings() -> None:
    assert {Verb.CONNECT} == {"connect"}
    assert f"{Protocol.UDP}" == "udp"
    assert Verb("resolve") is Verb.RESOLVE


def test_frozen() -> None:
    decision = Decision(True, "default")
    assert (decision.error, decision.cacheable, decision.name) == (0, True, None)
    with pytest.raises(FrozenInstanceError):
        decision.allowed = False  # type: ignore[misc]
    assert not hasattr(Caller("g", 1, "curl"), "__dict__")
