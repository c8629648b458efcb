"""The policy point of a guest: decisions by the names it knows, and what a record says of them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from ipaddress import ip_address
from typing import Any

from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol, Subject, Verb
from xensock.calls.record import Record
from xensock.policy.names import Names
from xensock.policy.point import Current, Point, address_of, program_path
from xensock.policy.policy import Policy


def made(*allow: str, deny: tuple[str, ...] = ()) -> tuple[Point, Names, list[Record]]:
    names, kept = Names(), list[Record]()
    return Point("guest", Policy.parse(allow, deny), names.of, kept.append), names, kept


def at(host: str, port: int) -> Endpoint:
    return Endpoint(ip_address(host), port)


def test_a_connection_is_decided_by_the_names_that_the_guest_learnt() -> None:
    point, names, _ = made("web.test:80")
    assert point.connect(Protocol.TCP, at("192.0.2.1", 80)).error == errno.EACCES
    names.learn("web.test", [ip_address("192.0.2.1")], 60)
    decision = point.connect(Protocol.TCP, at("192.0.2.1", 80))
    assert (decision.allowed, decision.name) == (True, "web.test")


def test_listening_is_decided_by_port_and_address() -> None:
    point, _, _ = made()
    assert point.listen(Protocol.TCP, at("0.0.0.0", 8080)).allowed
    assert point.listen(Protocol.TCP, at("0.0.0.0", 80)).error == errno.EACCES
    four, _, _ = made("listen:0.0.0.0:80")
    assert not four.listen(Protocol.TCP, at("::", 80)).allowed
    six, _, _ = made("listen:[2001:db8::1]:80")
    assert six.listen(Protocol.TCP, at("2001:db8::1", 80), v6only=True).allowed


def test_a_record_says_when_who_what_and_why() -> None:
    point, names, kept = made()
    names.learn("web.test", [ip_address("192.0.2.1")], 60)
    decision = Decision(False, "deny web.test", errno.EACCES, hint="remove it")
    start = time.monotonic_ns()
    point.write(
        Verb.CONNECT,
        "192.0.2.1:80",
        decision,
        "deny",
        "",
        errno.EACCES,
        pid=7,
        program="curl",
        start=start,
        took=2_000_000,
    )
    (record,) = kept
    assert abs(record.time - time.time()) < 5
    assert (record.guest, record.pid, record.program) == ("guest", 7, "curl")
    assert (record.name, record.rule, record.hint) == ("web.test", "deny web.test", "remove it")
    assert (record.result, record.error, record.duration) == (-1, errno.EACCES, 0.002)


def test_nothing_is_kept_where_nobody_records() -> None:
    point = Point("guest", Policy.parse(), lambda address: (), None)
    assert not point.recording
    point.write(
        Verb.BIND, "-", Decision(True, ""), "allow", "", 0, pid=1, program="", start=0, took=0
    )


def test_the_name_of_a_target() -> None:
    learnt = {ip_address("192.0.2.1"): ("web.test", "alias.test"), ip_address("fe80::1"): ("six",)}

    def names_of(address: object) -> tuple[str, ...]:
        return learnt.get(address, ())  # type: ignore[call-overload,no-any-return]

    point, unnamed = Point("guest", Policy.parse(), names_of, None), Decision(True, "")

    def name(target: str, decision: Decision = unnamed) -> str | None:
        return point.name(decision, address_of(target))

    assert name("192.0.2.1:80") == "web.test"
    assert name("192.0.2.1:80", Decision(True, "", name="alias.test")) == "alias.test"
    assert name("[fe80::1%2]:80") == "six"
    assert name("192.0.2.2:80") is None
    assert name("[8 bytes]") is None


def test_a_refusal_says_that_the_answer_for_a_name_has_lapsed() -> None:
    clock = [0.0]
    names = Names(clock=lambda: clock[0])
    policy = Policy.parse(["web.test:443"])
    point = Point("guest", policy, names.of, None, lapsed=names.lapsed)
    names.learn("web.test", [ip_address("192.0.2.1")], 30)
    assert point.connect(Protocol.TCP, at("192.0.2.1", 443)).allowed
    fresh = point.connect(Protocol.TCP, at("192.0.2.1", 80))
    assert fresh.hint == "--allow web.test:80"
    clock[0] = 90.0
    late = point.connect(Protocol.TCP, at("192.0.2.1", 443))
    assert (late.allowed, late.error) == (False, errno.EACCES)
    assert late.hint == "resolve web.test again, its answer has lapsed; or --allow 192.0.2.1:443"
    assert point.connect(Protocol.TCP, at("192.0.2.1", 80)).hint == "--allow 192.0.2.1:80"
    names.learn("web.test", [ip_address("192.0.2.1")], 30)
    assert point.connect(Protocol.TCP, at("192.0.2.1", 443)).allowed


def test_a_connection_outlives_the_answer_for_its_name() -> None:
    """It stays under a policy that allows the name, and under no other; new ones need an answer that holds."""
    clock = [0.0]
    names = Names(clock=lambda: clock[0])
    current = Current(Policy.parse(["web.test:443"]))
    point = Point("guest", current, names.of, None, lapsed=names.lapsed, keep=names.keep)
    names.learn("web.test", [ip_address("192.0.2.1")], 0)
    clock[0] = 1e6
    there = at("192.0.2.1", 443)
    assert not point.connect(Protocol.TCP, there).allowed
    assert point.still(there).allowed
    assert not point.still(at("192.0.2.2", 443)).allowed
    current.policy = Policy.parse(["web.test:443", "other.test"])
    assert point.still(there).allowed
    current.policy = Policy.parse(["other.test"])
    assert not point.still(there).allowed


def test_what_was_learnt_under_another_policy_is_judged_anew() -> None:
    """Without rules a name may have a private address; a rule by name that comes into force later opens none."""
    names = Names()
    current = Current(Policy.parse())
    point = Point("guest", current, names.of, None, keep=names.keep)
    names.learn("inner.test", [ip_address("10.0.0.1"), ip_address("192.0.2.1")], 60)
    names.learn("other.test", [ip_address("10.0.0.2")], 60)
    assert point.connect(Protocol.TCP, at("10.0.0.1", 443)).allowed
    current.policy = Policy.parse(["inner.test"])
    assert not point.connect(Protocol.TCP, at("10.0.0.1", 443)).allowed
    assert point.connect(Protocol.TCP, at("192.0.2.1", 443)).allowed
    assert names.of(ip_address("10.0.0.1")) == ()
    current.policy = Policy.parse(["other.test", "private:443"])
    assert names.of(ip_address("10.0.0.2")) == ("other.test",)
    assert point.connect(Protocol.TCP, at("10.0.0.2", 443)).allowed


class Programs(Policy):
    """Remembers who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.programs_needed = True
        self.asked: list[Subject] = []

    def connect(self, *args: Any) -> Decision:  # type: ignore[override]
        self.asked.append(args[-1])
        return Decision(True, "any")

    listen = connect  # type: ignore[assignment]


def test_the_policy_learns_labels_and_the_program_if_it_asks_for_them() -> None:
    policy = Programs()
    point = Point("guest", policy, lambda address: (), None, {"team": "web"})
    point.connect(Protocol.TCP, at("192.0.2.1", 80), os.getpid())
    point.listen(Protocol.TCP, at("0.0.0.0", 8080), False, os.getpid())
    point.connect(Protocol.TCP, at("192.0.2.1", 80))
    own = Subject(os.path.realpath(sys.executable), {"team": "web"})
    assert policy.asked == [own, own, Subject("", {"team": "web"})]
    policy.programs_needed = False
    point.connect(Protocol.TCP, at("192.0.2.1", 80), os.getpid())
    assert policy.asked[-1] == Subject("", {"team": "web"})


def test_the_program_of_a_process_that_is_gone_is_not_known() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert program_path(gone.pid) == ""
