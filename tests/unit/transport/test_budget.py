"""Shares of what a process has."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xensock.transport import budget
from xensock.transport.budget import Budget


def test_who_is_alone_gets_half() -> None:
    budget = Budget(lambda: 100)
    assert budget.take(0, 50)
    assert not budget.take(50, 1)
    assert budget.take(0, 25)  # another one
    assert not budget.take(25, 1)
    budget.give(50)
    assert budget.take(25, 25)


@given(st.lists(st.integers(1, 40), max_size=200), st.integers(1, 5))
def test_the_greedy_leave_something(asked: list[int], frontends: int) -> None:
    budget = Budget(lambda: 1024)
    own = [0] * frontends
    for number, more in enumerate(asked):
        who = number % frontends
        if budget.take(own[who], more):
            own[who] += more
    assert sum(own) == budget.used <= 1024
    newcomer = 0
    while budget.take(newcomer, 1):
        newcomer += 1
    assert newcomer >= 1024 >> frontends + 2


def test_this_process_has_something() -> None:
    assert budget.DESCRIPTORS.take(0, 1)
    budget.DESCRIPTORS.give(1)
    assert budget.MAPPINGS.take(0, 1)
    budget.MAPPINGS.give(1)
