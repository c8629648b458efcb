"""Why a call is decided as it is, and what would allow it."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given, settings

from xensock.calls import Protocol, Subject
from xensock.policy import Policy, RuleError
from xensock.policy.entries import Terms
from xensock.policy.explain import Call, Explanation, decide, explain, matching
from xensock.policy.load import parse
from xensock.policy.rules import parse_rule

from .test_index import Asked, Slow, calls, compiled, rules_of

FILE = """
[[rule]]
allow = ["10.0.0.0/8", "api.test:443"]
[[rule]]
deny = ["10.1.0.0/16", "10.2.0.5:22"]
[[rule]]
deny = "listen:any:80"
[[rule]]
allow = ["listen:any", "accept:10.0.0.0/8:8080"]
"""


def asked(text: str, *, deny: tuple[str, ...] = (), address: str | None = None) -> Explanation:
    policy = parse(FILE.encode(), "p.toml").policy((), deny)
    where = ip_address(address) if address else None
    return explain(policy, Call.of_words(text.split()), where)


@pytest.mark.parametrize(
    ("call", "rule", "source", "others", "smallest"),
    [
        ("connect tcp 10.3.0.1:22", "10.0.0.0/8", "p.toml:3", [], ""),
        ("10.1.0.1:22", "10.1.0.0/16", "p.toml:5", ["10.0.0.0/8"], "10.1.0.1:22"),
        ("connect 10.2.0.5:22", "10.2.0.5:22", "p.toml:5", ["10.0.0.0/8"], "10.2.0.5:22/tcp"),
        ("connect tcp api.test:443", "api.test:443", "p.toml:3", [], ""),
        ("connect udp api.test:80", "default: not in p.toml", "", [], "api.test:80/udp"),
        ("connect icmp api.test", "default: not in p.toml", "", [], "api.test/icmp"),
        ("connect tcp other.test:80", "default: name not in p.toml", "", [], "other.test:80"),
        ("connect tcp [2001:db8::1]:1", "default: not in p.toml", "", [], "[2001:db8::1]:1"),
        ("connect tcp 127.0.0.1:1", "default: host loopback", "", [], "127.0.0.1:1"),
        ("listen tcp any:81", "listen:any", "p.toml:9", [], ""),
        ("listen tcp any:80", "listen:any:80", "p.toml:7", ["listen:any"], "listen:any:80/tcp"),
        (
            "listen tcp 10.0.0.1:80",
            "listen:any:80",
            "p.toml:7",
            ["listen:any"],
            "listen:10.0.0.1:80",
        ),
        ("accept 10.0.0.1:8080", "accept:10.0.0.0/8:8080", "p.toml:9", [], ""),
        ("accept 192.0.2.1:8080", "default: not in p.toml", "", [], "accept:192.0.2.1:8080"),
        ("resolve api.test", "api.test:443", "p.toml:3", [], ""),
        ("resolve other.test", "default: name not in p.toml", "", [], "other.test"),
    ],
)
def test_explanations(call: str, rule: str, source: str, others: list[str], smallest: str) -> None:
    found = asked(call)
    assert (found.decision.rule, found.decision.source) == (rule, source)
    assert [entry.rule.text for entry in found.others] == others
    assert found.smallest == smallest


def test_nothing_allows_what_an_option_denies() -> None:
    found = asked("10.0.0.1:22", deny=("10.0.0.0/8:22",))
    assert (found.decision.rule, found.smallest) == ("10.0.0.0/8:22", "")
    assert [entry.rule.text for entry in found.others] == ["10.0.0.0/8"]


def test_a_name_is_asked_where_it_leads() -> None:
    assert asked("api.test:443", address="10.9.0.1").decision.rule == "api.test:443"
    assert asked("api.test:443", address="127.0.0.1").decision.rule == "default: host loopback"
    assert asked("api.test:443", address="127.0.0.1").smallest == "127.0.0.1:443"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conect tcp a.test:1", "no such call"),
        ("connect sctp a.test:1", "not understood"),
        ("connect tcp a.test", "a port is missing"),
        ("connect tcp *.a.test:1", "more than one host"),
        ("connect tcp 10.0.0.0/8:1", "more than one host"),
        ("connect tcp any:1", "more than one host"),
        ("resolve 10.0.0.1", "not one name"),
        ("resolve *.a.test", "not one name"),
        ("accept udp 10.0.0.1:1", "only TCP"),
    ],
)
def test_what_is_no_call(text: str, message: str) -> None:
    with pytest.raises(RuleError, match=message) as caught:
        Call.of_words(text.split())
    assert caught.value.hint


@settings(max_examples=40)
@given(rules_of, calls)
def test_the_first_that_matches_decides(rules: list[Slow], asked: list[Asked]) -> None:
    """The list that is shown is in the order of the decision."""
    policy = compiled(rules)
    for each in asked:
        name = each.names[0] if each.names else None
        host = ip_address(each.host)
        call = Call("connect", Protocol(each.protocol), name or host, each.port, "")
        who = Subject(each.program, each.labels)
        names = each.names[:1]
        decision = policy.connect(call.protocol, host, each.port, names, who)
        sources = [entry.terms.source for _, entry in matching(policy, call, host, who)]
        if decision.source:
            assert decision.source in sources
        if not decision.allowed and decision.source:
            # Rules before it can only be such that do not open the address.
            before = sources[: sources.index(decision.source)]
            assert all(rules[int(s.rpartition(":")[2])].allow for s in before)


@settings(max_examples=40)
@given(rules_of, calls)
def test_the_smallest_rule_allows(rules: list[Slow], asked: list[Asked]) -> None:
    policy = compiled(rules)
    for each in asked[:2]:
        call = Call("connect", Protocol(each.protocol), ip_address(each.host), each.port, "")
        who = Subject(each.program, each.labels)
        found = explain(policy, call, None, who)
        assert bool(found.smallest) <= (not found.decision.allowed)
        if found.smallest:
            wider = Policy(
                [
                    *((e.rule, e.terms) for e in policy.entries),
                    (parse_rule(found.smallest), Terms(True)),
                ],
                title="p.toml",
            )
            assert decide(wider, call, None, who).allowed
