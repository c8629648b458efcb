"""Refused calls are remembered, the last ones first, and no others."""

from __future__ import annotations

from dataclasses import replace

from xensock.calls.record import Record, closed
from xensock.observe.denials import KEPT, Denials
from xensock.observe.tap import Tap


def refused(number: int, guest: str = "g") -> Record:
    return Record(float(number), guest, 7, "curl", "connect", f"10.0.0.1:{number}", decision="deny")


def test_the_last_ones_are_kept() -> None:
    denials = Denials()
    for number in range(KEPT + 5):
        denials.note(refused(number, "even" if number % 2 == 0 else "odd"))
    assert [each.time for each in denials.last()] == [*range(KEPT + 4, 4, -1)]
    assert {each.guest for each in denials.last("odd")} == {"odd"}


def test_what_is_repeated_is_one() -> None:
    denials, told = Denials(), list[Record]()
    denials.tell = told.append
    again = replace(refused(1), time=9.0, pid=8)
    for each in (refused(1), refused(2), again):
        denials.note(each)
    assert denials.last() == [again, refused(2)]
    assert told == [refused(1), refused(2)]


def test_nothing_else_is() -> None:
    refusal = refused(1)
    tap, told = Tap(), list[Record]()
    tap.denials.tell = told.append
    tap(Record(1.0, "g", 7, "curl", "connect", "10.0.0.1:1", decision="allow"))
    tap(closed(refusal, 3.5, 10, 20, 0))
    assert tap.denials.last() == []
    assert not tap.active
    tap(refusal)
    assert tap.denials.last() == told == [refusal]
