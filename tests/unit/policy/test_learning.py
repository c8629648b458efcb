"""What a guest did, as a policy that would have allowed it."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from xensock.calls.call import Protocol, Verb
from xensock.calls.record import Record
from xensock.policy.learning import MARK, MOST, Learner
from xensock.policy.load import parse

if TYPE_CHECKING:
    from xensock.policy.policy import Policy


def did(verb: Verb, target: str, name: str | None = None, **more: Any) -> Record:
    more = {"decision": "allow", "datapath": "direct", "rule": "any", **more}
    return Record(0.0, "guest", 1, "program", verb, target, name, **more)


def learnt(*records: Record) -> tuple[str, Policy]:
    learner = Learner()
    for record in records:
        learner.record(record)
    text = learner.text()
    assert text.startswith(MARK)
    return text, parse(text.encode(), "learnt.toml").policy()


def test_destinations_stand_by_name_and_by_address_without_one() -> None:
    text, policy = learnt(
        did(Verb.CONNECT, "198.51.100.10:443", "web.test"),
        did(Verb.CONNECT, "198.51.100.10:443", "web.test"),
        did(Verb.SEND, "[2001:db8::1]:7/udp", "Six.test."),
        did(Verb.CONNECT, "192.0.2.9:22"),
        did(Verb.SEND, "192.0.2.9/icmp"),
    )
    assert text.count("web.test:443") == 1
    web, other = ip_address("198.51.100.10"), ip_address("192.0.2.9")
    assert policy.resolve("web.test").allowed
    assert policy.connect(Protocol.TCP, web, 443, ["web.test"]).allowed
    assert not policy.connect(Protocol.TCP, web, 80, ["web.test"]).allowed
    assert not policy.connect(Protocol.TCP, web, 443).allowed
    assert policy.connect(Protocol.UDP, ip_address("2001:db8::1"), 7, ["six.test"]).allowed
    assert policy.connect(Protocol.TCP, other, 22).allowed
    assert policy.connect(Protocol.ICMP, other, 0).allowed
    assert not policy.connect(Protocol.TCP, other, 23).allowed
    assert not policy.resolve("else.test").allowed


def test_private_addresses_of_names_stand_beside_them_and_protected_ones_alone() -> None:
    text, policy = learnt(
        did(Verb.CONNECT, "10.0.0.5:80", "inner.test"),
        did(Verb.CONNECT, "127.0.0.1:5432", "localhost"),
        did(Verb.CONNECT, "[fe80::1%eth0]:80"),
    )
    inner = ip_address("10.0.0.5")
    assert policy.answer("inner.test", inner).allowed
    assert policy.connect(Protocol.TCP, inner, 80, ["inner.test"]).allowed
    assert policy.connect(Protocol.TCP, ip_address("127.0.0.1"), 5432).allowed
    assert policy.connect(Protocol.TCP, ip_address("fe80::1"), 80).allowed
    assert "localhost" not in text


def test_names_that_were_only_looked_up_may_be_looked_up_again() -> None:
    _, policy = learnt(
        did(Verb.RESOLVE, "seen.test", "seen.test", datapath="dns"),
        did(Verb.RESOLVE, "gone.test", "gone.test", datapath="dns", error=2),
    )
    assert policy.resolve("seen.test").allowed
    assert not policy.resolve("gone.test").allowed
    seen = ip_address("198.51.100.10")
    assert not policy.connect(Protocol.TCP, seen, 443, ["seen.test"]).allowed


def test_listeners_keep_their_port_unless_the_kernel_chose_it() -> None:
    nowhere = ip_address("0.0.0.0")
    text, policy = learnt(
        did(Verb.BIND, "0.0.0.0:8080"),
        did(Verb.LISTEN, "0.0.0.0:8080"),
        did(Verb.BIND, "0.0.0.0:5353/udp"),
        did(Verb.BIND, "0.0.0.0:9/udp", rule="answers only (default)"),
        did(Verb.LISTEN, "0.0.0.0:90", rule="--publish 90"),
    )
    assert policy.listen(Protocol.TCP, nowhere, 8080).allowed
    assert policy.listen(Protocol.UDP, nowhere, 5353).allowed
    assert not policy.listen(Protocol.TCP, nowhere, 8081).allowed
    assert not policy.listen(Protocol.UDP, nowhere, 9).allowed
    assert not policy.listen(Protocol.TCP, nowhere, 90).allowed
    _, policy = learnt(did(Verb.BIND, "127.0.0.1:0"), did(Verb.LISTEN, "192.0.2.1:41234"))
    assert policy.listen(Protocol.TCP, ip_address("192.0.2.1"), 0).allowed
    assert "8080" in text


def test_paths_and_what_stays_inside() -> None:
    text, policy = learnt(
        did(Verb.CONNECT, "unix:/run/app.sock"),
        did(Verb.CONNECT, "127.0.0.1:99", decision="guest", datapath="guest"),
        did(Verb.CONNECT, "192.0.2.53:53", datapath="dns", rule="name service"),
    )
    assert policy.unix("/run/app.sock").allowed
    assert "99" not in text
    assert "53" not in text


def test_what_was_refused_is_a_comment() -> None:
    text, policy = learnt(
        did(Verb.CONNECT, "192.0.2.9:22", decision="deny"),
        did(Verb.RESOLVE, 'a"\n[[rule]]\nallow = "any"', decision="deny", datapath=""),
    )
    assert not policy.entries
    assert "192.0.2.9:22" in text


def test_there_is_an_end_to_what_is_kept() -> None:
    records = [did(Verb.CONNECT, f"192.0.2.1:{1 + at}") for at in range(MOST + 5)]
    text, policy = learnt(*records)
    assert len(policy.entries) == MOST
    assert "5 calls more" in text


@given(st.lists(st.tuples(st.sampled_from(list(Verb)), st.text(), st.text(), st.text())))
def test_whatever_a_guest_says_is_a_policy_that_allows_nothing_else(
    calls: list[tuple[Verb, str, str, str]],
) -> None:
    records = [did(verb, target, name, rule=rule) for verb, target, name, rule in calls]
    records += [did(verb, "192.0.2.1:80", name) for verb, _, name, _ in calls]
    _, policy = learnt(*records)
    assert not policy.connect(Protocol.TCP, ip_address("198.51.100.77"), 81).allowed
    assert not policy.listen(Protocol.UDP, ip_address("0.0.0.0"), 81).allowed
