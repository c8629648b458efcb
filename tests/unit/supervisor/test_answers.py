"""What an answer tells, and what is left of it when some addresses are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.policy.policy import Policy
from xensock.stack import resolver_wire as wire
from xensock.supervisor.answers import Learnt, read

if TYPE_CHECKING:
    from collections.abc import Iterable

POLICY = Policy.parse(allow=["web.test:443"])
KEY = "ech=AAT+DQAA"  # a list of one configuration, as short as can be
SIGNATURE = "8 2 60 20300101000000 20200101000000 1 web.test. AAAA"


def response(kind: str, answer: Iterable[str], additional: Iterable[str] = ()) -> bytes:
    """A reply to a question for web.test with these records: NAME TTL TYPE DATA."""
    message = dns.message.make_response(dns.message.make_query("web.test.", kind))
    message.flags |= dns.flags.AD
    for lines, section in ((answer, message.answer), (additional, message.additional)):
        for line in lines:
            name, ttl, rdtype, data = line.split(maxsplit=3)
            rrset = dns.rrset.from_text(name, int(ttl), "IN", rdtype, data)
            alike = [one for one in section if one.match(rrset.name, 1, rrset.rdtype, rrset.covers)]
            for one in alike:
                one.update(rrset)
            if not alike:
                section.append(rrset)
    return message.to_wire()


def learn(answer: bytes, policy: Policy | None = POLICY, *, ech: bool = True) -> Learnt:
    judge = None if policy is None else lambda address: policy.answer("web.test", address)
    return read(answer, wire.read_question(answer), judge, ech)


def texts(learnt: Learnt) -> list[str]:
    """The records of the answer section that is left."""
    message = dns.message.from_wire(learnt.message)
    return sorted(f"{rrset.name} {rd}" for rrset in message.answer for rd in rrset)


def hosts(learnt: Learnt) -> set[str]:
    return {str(address) for address in learnt.addresses}


def test_the_end_of_a_chain_is_what_the_name_has() -> None:
    chain = [
        "web.test. 300 CNAME cdn.test.",
        "cdn.test. 20 CNAME edge.test.",
        "edge.test. 60 A 192.0.2.1",
    ]
    stray = ["other.test. 5 A 192.0.2.9"]
    answer = response("A", [*chain, "edge.test. 60 A 192.0.2.2", *stray])
    learnt = learn(answer)
    assert hosts(learnt) == {"192.0.2.1", "192.0.2.2"}
    assert learnt.ttl == 20
    assert learnt.message == answer
    assert not learnt.refused


def test_a_chain_that_bites_its_tail_ends() -> None:
    assert (
        learn(response("A", ["web.test. 9 CNAME a.test.", "a.test. 9 CNAME web.test."])).addresses
        == []
    )


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254"),
        *("169.254.7.7", "0.0.0.0", "224.0.0.1", "255.255.255.255", "100.100.100.200"),
        *("::1", "::", "fe80::1", "fd00::1", "fd00:ec2::254", "ff02::1", "::ffff:10.0.0.1"),
        *("64:ff9b::10.0.0.1", "64:ff9b::7f00:1"),
    ],
)
def test_what_is_not_public_is_taken_out_and_explained(address: str) -> None:
    kind, good = ("AAAA", "2001:db8::7") if ":" in address else ("A", "192.0.2.7")
    mixed = response(kind, [f"web.test. 60 {kind} {address}", f"web.test. 60 {kind} {good}"])
    learnt = learn(mixed)
    assert hosts(learnt) == {good}
    assert texts(learnt) == [f"web.test. {good}"]
    (why,) = learnt.refused.values()
    assert why.rule.startswith("default: web.test has ")
    assert why.hint.startswith("--allow ")
    assert not dns.message.from_wire(learnt.message).flags & dns.flags.AD
    alone = learn(response(kind, [f"web.test. 60 {kind} {address}"]))
    assert alone.addresses == []
    assert texts(alone) == []
    assert wire.rcode(alone.message) == wire.NOERROR
    # Where no rule by name opened the name, the answer stays as it is.
    assert learn(mixed, None).message == mixed


def test_signatures_over_what_was_changed_go_too() -> None:
    signed = [
        "web.test. 60 A 192.0.2.7",
        "web.test. 60 A 10.0.0.7",
        f"web.test. 60 RRSIG A {SIGNATURE}",
        f"web.test. 60 RRSIG AAAA {SIGNATURE}",
    ]
    left = [line.split()[1] for line in texts(learn(response("ANY", signed)))]
    assert left == ["192.0.2.7", "AAAA"]


def test_every_section_is_sifted() -> None:
    more = ["cdn.test. 60 A 10.0.0.1", "cdn.test. 60 A 192.0.2.1"]
    learnt = learn(response("A", ["web.test. 60 A 192.0.2.7"], more))
    message = dns.message.from_wire(learnt.message)
    assert [rd.to_text() for rrset in message.additional for rd in rrset] == ["192.0.2.1"]
    assert hosts(learnt) == {"192.0.2.7"}


def test_hints_of_services_are_learnt_or_taken_out() -> None:
    service = "web.test. 30 HTTPS 1 . mandatory=ipv4hint alpn=h2 ipv4hint={} ipv6hint={}"
    learnt = learn(response("HTTPS", [service.format("192.0.2.7,10.0.0.7", "2001:db8::7")]))
    assert hosts(learnt) == {"192.0.2.7", "2001:db8::7"}
    assert learnt.ttl == 30
    (line,) = texts(learnt)
    assert 'ipv4hint="192.0.2.7"' in line
    assert "10.0.0.7" not in line
    learnt = learn(response("HTTPS", [service.format("10.0.0.7", "fd00::7,::1")]))
    assert learnt.addresses == []
    assert texts(learnt) == ['web.test. 1 . alpn="h2"']
    assert len(learnt.refused) == 3
    untouched = response("SVCB", ["web.test. 30 SVCB 0 svc.test."])
    assert learn(untouched).message == untouched


def test_keys_for_encrypted_hellos_go_where_the_first_bytes_are_verified() -> None:
    with_key = response("HTTPS", [f"web.test. 30 HTTPS 1 . mandatory=ech,alpn alpn=h2 {KEY}"])
    assert learn(with_key).message == with_key
    learnt = learn(with_key, ech=False)
    assert texts(learnt) == ['web.test. 1 . mandatory="alpn" alpn="h2"']
    assert not learnt.refused


@given(st.integers(0, 60), st.binary(max_size=60))
def test_a_damaged_answer_is_refused_or_read_and_never_tells_what_is_refused(
    at: int, garbage: bytes
) -> None:
    whole = response("A", ["web.test. 60 A 10.0.0.1", "web.test. 60 HTTPS 1 . ipv4hint=10.0.0.2"])
    damaged = whole[:at] + garbage + whole[at + len(garbage) :]
    try:
        learnt = learn(damaged)
    except (wire.WireError, dns.exception.DNSException, ValueError):
        return
    assert all(POLICY.answer("web.test", address).allowed for address in learnt.addresses)
    assert (
        read(learnt.message, wire.read_question(learnt.message), None).addresses == learnt.addresses
    )
