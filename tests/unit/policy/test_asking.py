"""Who is asked about destinations that no rule is about, and what becomes of the answers."""

from __future__ import annotations

from concurrent.futures import Future
from ipaddress import ip_address
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.calls.call import Protocol, Verb
from xensock.policy.asking import Asker
from xensock.policy.point import Point
from xensock.policy.policy import Policy

if TYPE_CHECKING:
    from xensock.policy.asking import Word


class Person:
    def __init__(self) -> None:
        self.asked: list[tuple[str, Future[Word]]] = []

    def ask(self, text: str) -> Future[Word]:
        said: Future[Word] = Future()
        self.asked.append((text, said))
        return said

    def say(self, word: Word) -> None:
        self.asked[-1][1].set_result(word)


def point(person: Person, *allow: str, deny: tuple[str, ...] = ()) -> Point:
    asker = Asker(person.ask)
    return Point(
        "guest", Policy.parse(allow, deny), lambda address: ("web.test",), None, asker=asker
    )


WEB = Endpoint(ip_address("198.51.100.10"), 80)


def consult(where: Point, end: Endpoint = WEB) -> Future[object] | None:
    decision = where.connect(Protocol.TCP, end)
    return where.consult(Verb.CONNECT, decision, Protocol.TCP, end)  # type: ignore[return-value]


def allowed(word: Future[object] | None) -> bool:
    assert word is not None
    return bool(word.result(0).allowed)  # type: ignore[attr-defined]


def test_once_holds_for_those_that_wait() -> None:
    person = Person()
    where = point(person, "other.test")
    first, second = consult(where), consult(where)
    assert [text for text, _ in person.asked] == [
        "a program wants to reach web.test:80/tcp at 198.51.100.10"
    ]
    person.say("once")
    assert allowed(first)
    assert allowed(second)
    third = consult(where)
    assert len(person.asked) == 2
    person.say("")
    assert not allowed(third)


def test_always_and_never_hold_on() -> None:
    person = Person()
    where = point(person, "other.test")
    for end, word in ((WEB, "always"), (Endpoint(WEB.host, 81), "never")):
        first = consult(where, end)
        person.say(word)  # type: ignore[arg-type]
        count = len(person.asked)
        assert allowed(first) is allowed(consult(where, end)) is (word == "always")
        assert len(person.asked) == count


def test_nobody_is_asked_where_a_rule_decides_or_nobody_may_open() -> None:
    person = Person()
    where = point(person, "web.test:80", deny=("192.0.2.0/24",))
    assert consult(where) is None
    assert consult(where, Endpoint(ip_address("192.0.2.1"), 80)) is None
    for closed in ("127.0.0.1", "169.254.169.254", "fe80::1"):
        assert consult(where, Endpoint(ip_address(closed), 80)) is None
    assert where.resolve("unknown.test").allowed
    # Without rules, what is allowed by default is asked about.
    assert consult(point(person)) is not None
