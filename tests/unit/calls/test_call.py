"""The vocabulary is frozen, slotted, and compares with plain strings."""

from dataclasses import FrozenInstanceError

import pytest

from xensock.calls import Caller, Decision, Limit, Protocol, Subject, Verb


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


def test_a_decision_says_nothing_more_unless_a_rule_does() -> None:
    plain = Decision(True, "any")
    assert (plain.redirect, plain.via, plain.limit, plain.verify) == (None, (), None, None)
    assert (plain.needs_relay, plain.close_on_reload, plain.source) == (False, False, "")
    # Verdicts are told apart by what they say.
    assert plain != Decision(True, "any", limit=Limit(rate=1000))
    assert hash(plain) == hash(Decision(True, "any"))
    assert Subject() == Subject("", {})
