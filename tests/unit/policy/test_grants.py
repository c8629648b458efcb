"""What a rule grants: together, over time, and back again."""

from __future__ import annotations

import errno
import gc

from hypothesis import given
from hypothesis import strategies as st

from xensock.calls.call import Decision, Limit
from xensock.policy.grants import Grant, Grants


def by(rule: str = "web.test", **limit: float) -> Decision:
    return Decision(True, rule, limit=Limit(**limit), source="p.toml:3")  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def taken(grants: Grants, decision: Decision) -> Grant:
    grant = grants.take(decision)
    assert isinstance(grant, Grant), grant
    return grant


def refused(grants: Grants, decision: Decision) -> Decision:
    found = grants.take(decision)
    assert isinstance(found, Decision)
    assert (found.allowed, found.error, found.cacheable) == (False, errno.ECONNREFUSED, False)
    return found


def test_so_many_at_once() -> None:
    grants, rule = Grants(), by(concurrent=2)
    first, second = taken(grants, rule), taken(grants, rule)
    why = refused(grants, rule)
    assert why.rule == "limit of web.test: 2 connections at once"
    assert why.hint == "raise the limit at p.toml:3, or try again later"
    other = taken(grants, by("other.test", concurrent=1))
    first.release()
    first.release()
    third = taken(grants, rule)
    refused(grants, rule)
    del second
    gc.collect()
    fourth = taken(grants, rule)
    refused(grants, rule)
    for grant in (third, fourth, other):
        grant.release()


def test_so_many_a_second() -> None:
    clock = Clock()
    grants, rule = Grants(clock=clock), by(connects=3)
    for _ in range(3):
        taken(grants, rule)
    assert refused(grants, rule).rule == "limit of web.test: 3 new connections per second"
    clock.now += 1 / 3 + 0.01
    taken(grants, rule)
    refused(grants, rule)
    clock.now += 100
    for _ in range(3):
        taken(grants, rule)
    refused(grants, rule)
    slow = by("slow.test", connects=0.1)
    taken(grants, slow)
    clock.now += 9
    refused(grants, slow)
    clock.now += 1.01
    taken(grants, slow)


def test_connections_of_a_rule_share_its_bucket() -> None:
    made: list[int] = []

    def bucket(rate: int) -> object:
        made.append(rate)
        return [rate]

    grants, rule = Grants(bucket), by(rate=1000)
    one, two = taken(grants, rule), taken(grants, rule)
    assert one.bucket is two.bucket is not None
    assert taken(grants, by("other.test", rate=1000)).bucket is not one.bucket
    assert taken(grants, by("free.test", concurrent=9)).bucket is None
    assert made == [1000, 1000]
    assert taken(Grants(), rule).bucket is not None  # the mover's own


def test_a_changed_limit_counts_what_is_open() -> None:
    grants = Grants()
    first, second = taken(grants, by(concurrent=2)), taken(grants, by(concurrent=2))
    refused(grants, by(concurrent=1))
    third = taken(grants, by(concurrent=3))
    refused(grants, by(concurrent=3))
    first.release()
    second.release()
    fourth, fifth = taken(grants, by(concurrent=3)), taken(grants, by(concurrent=3))
    refused(grants, by(concurrent=3))
    for grant in (third, fourth, fifth):
        grant.release()


@given(st.lists(st.one_of(st.just(True), st.integers(0, 9)), max_size=60), st.integers(1, 5))
def test_never_more_than_the_limit(steps: list[bool | int], most: int) -> None:
    grants, rule, held = Grants(), by(concurrent=most), []
    for step in steps:
        if step is True:
            found = grants.take(rule)
            assert isinstance(found, Grant) == (len(held) < most)
            if isinstance(found, Grant):
                held.append(found)
        elif held:
            held.pop(step % len(held)).release()
