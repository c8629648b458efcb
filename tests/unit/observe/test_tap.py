"""Records go to those who want them, while they want them."""

from __future__ import annotations

from xensock.calls.record import Record, closed
from xensock.observe.tap import Tap

CALL = Record(1.0, "g", 7, "curl", "connect", "198.51.100.7:80", connection=9)
END = closed(CALL, 3.5, 10, 20, 0)


def test_sinks_come_and_go() -> None:
    tap, some, all_of_them = Tap(), list[Record](), list[Record]()
    states: list[tuple[bool, bool]] = []
    tap.watch(lambda: states.append((tap.active, tap.ends)))
    tap(CALL)
    tap.add(some.append)
    tap.add(all_of_them.append, ends=True)
    tap(CALL)
    tap(END)
    tap.remove(some.append)
    tap(CALL)
    tap.remove(all_of_them.append)
    tap(CALL)
    assert some == [CALL]
    assert all_of_them == [CALL, END, CALL]
    assert states == [(False, False), (True, False), (True, True), (True, True), (False, False)]


def test_who_no_longer_watches_is_not_called() -> None:
    tap, told = Tap(), list[bool]()

    def changed() -> None:
        told.append(tap.active)

    tap.watch(changed)
    tap.unwatch(changed)
    tap.add(lambda record: None)
    assert told == [False]
