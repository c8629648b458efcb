"""What `xensock bench policy` measures is what it says."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import pytest

from xensock.bench import policy, policy_rows
from xensock.bench.side import Setting
from xensock.calls import Protocol
from xensock.policy import Policy
from xensock.policy.load import parse

if TYPE_CHECKING:
    from collections.abc import Sequence

SETTING = Setting("xensock", IPv4Address("127.0.0.1"))


def test_the_rules_are_as_many_as_they_say() -> None:
    made = policy.rules(1000)
    assert len(made) == 1000
    assert made == policy.rules(1000)
    found = parse(policy.text_of(made).encode(), "bench.toml").policy()
    assert len(found.entries) == 1000


def test_the_calls_are_of_three_kinds_and_differ() -> None:
    made = policy.rules(1000)
    found = parse(policy.text_of(made).encode(), "bench.toml").policy()
    calls = policy.calls_for(made)
    assert len(set(calls)) > 0.9 * policy.CALLS
    kinds: Counter[str] = Counter()
    for host, port, names in calls:
        decision = found.connect(Protocol.TCP, host, port, names)
        by_rule = "rule" if decision.source else "default"
        kinds[f"{'name' if names else 'address'} {by_rule}"] += 1
    assert kinds["name default"] == 0
    assert kinds["name rule"] == pytest.approx(policy.CALLS / 3, abs=1)
    assert kinds["address default"] == pytest.approx(policy.CALLS / 3, abs=policy.CALLS / 20)


class Slow(Policy):
    """Takes its time."""

    def connect(self, *args: object, **words: object) -> object:  # type: ignore[override]
        return [number for number in range(20_000) if number % 7 == 0]


def test_a_decision_that_takes_longer_shows() -> None:
    calls: Sequence[policy.Call] = policy.calls_for(policy.rules(10))[:50]
    assert policy.decide(Slow(), list(calls)) > policy.decide(Policy(), list(calls))


def test_the_rows_measure_both_sides() -> None:
    row = policy_rows.ROWS[0]
    with row.measure(SETTING) as pair:
        assert pair.native() > 0
        assert pair.ours() > 0
    assert [row.name for row in policy_rows.ROWS] == [
        "policy.10",
        "policy.1000",
        "policy.10000",
        "policy.connections",
    ]
    assert set(policy_rows.TARGETS) <= {row.name for row in policy_rows.ROWS}
