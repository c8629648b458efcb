"""The compiled policy decides as a slow evaluator does that asks every rule and compares what is written."""

from __future__ import annotations

from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from xensock.calls import Protocol, Subject
from xensock.policy import Policy
from xensock.policy.entries import Terms
from xensock.policy.index import Bucket, Index
from xensock.policy.rules import parse_rules

if TYPE_CHECKING:
    from collections.abc import Mapping

NETS = [
    "10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/17", "10.1.2.3", "0.0.0.0/0", "::/0", "2001:db8::/32", "2001:db8::1",
    "127.0.0.0/8", "127.0.0.1", "169.254.0.0/16", "169.254.169.254", "::1", "168.0.0.0/6", "64:ff9b::/96",
]  # fmt: skip
NAMES = ["web.test", "*.web.test", "*.a.web.test", "a.web.test", "b.a.web.test", "evil.test"]
GROUPS = {
    "private": [
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10", "200::/7",
        "64:ff9b:1::/48",
    ],
    "loopback": ["127.0.0.0/8", "::1/128"],
    "mine": ["10.1.0.0/17", "2001:db8::1/128"],
}  # fmt: skip
OWN = {"mine": ["10.1.0.0/17", "2001:db8::1"]}
PORTS = [(0, 65535), (80, 80), (80, 90), (443, 443), (1, 1000)]
PROGRAMS: list[tuple[str, ...]] = [(), ("/bin/git",), ("/bin/*",)]
LABELS: list[Mapping[str, str]] = [{}, {"team": "web"}, {"team": "web", "env": "ci"}]
HOSTS = [
    "10.1.2.3", "10.1.2.4", "10.1.200.1", "10.2.0.1", "192.168.1.1", "203.0.113.9", "127.0.0.1", "127.0.0.2",
    "169.254.169.254", "169.254.1.1", "168.1.1.1", "::1", "2001:db8::1", "2001:db8::2", "2a00::1",
    "64:ff9b::10.1.2.3", "64:ff9b::127.0.0.1", "64:ff9b::203.0.113.9", "::ffff:10.1.2.3", "0.0.0.0",
]  # fmt: skip


class Slow(NamedTuple):
    allow: bool
    host: str
    ports: tuple[int, int]
    protocol: str
    programs: tuple[str, ...]
    labels: Mapping[str, str]

    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        ports = "" if self.ports == (0, 65535) else f":{self.ports[0]}-{self.ports[1]}"
        return host + ports + (f"/{self.protocol}" if self.protocol else "")


class Asked(NamedTuple):
    host: str
    port: int
    protocol: str
    names: tuple[str, ...]
    program: str
    labels: Mapping[str, str]


def forms_of(host: str) -> list[str]:
    """What the address means: itself, or 127.0.0.1 for 0.0.0.0, and what NAT64 makes of it."""
    address = ip_address(host)
    if address.version == 6 and address.ipv4_mapped:
        return [str(address.ipv4_mapped)]
    if host == "0.0.0.0":
        return ["127.0.0.1"]
    if address in ip_network("64:ff9b::/96"):
        return [host, str(ip_address(int(address) & 0xFFFFFFFF))]
    return [host]


def guard(host: str) -> str:
    """The protected range of an address."""
    if ip_address(host).is_loopback:
        return "loopback"
    if host == "169.254.169.254":
        return "metadata"
    return "linklocal" if ip_address(host) in ip_network("169.254.0.0/16") else ""


def holding(rule: Slow, host: str) -> list[int]:
    """How long the networks of a rule are that hold an address, in bits of IPv6 (10.0.0.0/8 is as long as the part of
    64:ff9b::/96 that means it); 32 and 128 are one host."""
    address = ip_address(host)
    nets = [ip_network(net) for net in GROUPS.get(rule.host, [rule.host])]
    found = [net for net in nets if net.version == address.version and address in net]
    return [
        1000
        if net.prefixlen == net.max_prefixlen
        else net.prefixlen + (96 if net.version == 4 else 0)
        for net in found
    ]


def opened(rule: Slow, form: str) -> bool:
    """Whether a rule by address opens a protected address."""
    group = guard(form)
    if not group:
        return True
    return {
        "loopback": rule.host in ("loopback", "127.0.0.0/8", "127.0.0.1", "::1"),
        "metadata": rule.host == "169.254.169.254",
        "linklocal": rule.host == "169.254.0.0/16",
    }[group]


def address_rank(rule: Slow, form: str, forms: list[str]) -> int | None:
    """How specific a rule by address is about one form of an address; None: it is not about it. What allows must open
    every form that it is to hold for."""
    ranks = holding(rule, form)
    if rule.allow:
        group = rule.host in GROUPS and rule.host != "mine"
        if group and not all(holding(rule, each) for each in forms):
            return None
        exact = "/" not in rule.host and rule.host not in GROUPS
        exact = exact or (rule.host == "mine" and 1000 in ranks)
        if not exact and not all(opened(rule, each) for each in forms):
            return None
    return max(ranks, default=None)


def name_rank(rule: Slow, asked: Asked) -> int | None:
    """How specific a rule by name is for a call; None: it is not about it."""
    if rule.allow and any(guard(form) for form in forms_of(asked.host)):
        return None
    if rule.host.startswith("*"):
        ends = rule.host[1:]
        return 200 + ends.count(".") if any(n.endswith(ends) for n in asked.names) else None
    return 1000 if rule.host in asked.names else None


def takes(rule: Slow, asked: Asked) -> bool:
    """Whether a rule is about such calls, wherever they lead."""
    return (
        rule.ports[0] <= asked.port <= rule.ports[1]
        and rule.protocol in ("", asked.protocol)
        and (not rule.programs or any(fnmatchcase(asked.program, p) for p in rule.programs))
        and all(asked.labels.get(key) == value for key, value in rule.labels.items())
    )


def slow_decision(rules: list[Slow], asked: Asked) -> int | None:
    """The number of the rule that decides; None where none does."""
    forms = forms_of(asked.host)
    about = [(number, rule) for number, rule in enumerate(rules) if takes(rule, asked)]

    def best(ranked: list[tuple[int | None, int, Slow]]) -> tuple[int | None, int, Slow] | None:
        def key(each: tuple[int | None, int, Slow]) -> tuple[int, ...]:
            rank, number, rule = each
            low, high = rule.ports
            program = 0 if not rule.programs else 1 if "*" in rule.programs[0] else 2
            assert rank is not None
            return (
                rank, low - high, bool(rule.protocol), program, len(rule.labels), not rule.allow, -number,
            )  # fmt: skip

        return max((each for each in ranked if each[0] is not None), key=key, default=None)

    found = [
        (
            name_rank(rule, asked) if rule.host in NAMES else address_rank(rule, forms[0], forms),
            number,
            rule,
        )
        for number, rule in about
    ]
    for form in forms[1:]:
        # What the address means besides must not be refused for itself; that it is allowed does not help.
        inner = best(
            [(address_rank(r, form, [form]), n, r) for n, r in about if r.host not in NAMES]
        )
        if inner is not None and not inner[2].allow:
            found.append(inner)
    decided = best(found)
    return decided[1] if decided else None


rules_of = st.lists(
    st.builds(
        Slow,
        st.booleans(),
        st.sampled_from([*NETS, *NAMES, *GROUPS]),
        st.sampled_from(PORTS),
        st.sampled_from(["", "tcp", "udp"]),
        st.sampled_from(PROGRAMS),
        st.sampled_from(LABELS),
    ),
    max_size=12,
)
calls = st.lists(
    st.builds(
        Asked,
        st.sampled_from(HOSTS),
        st.sampled_from([80, 85, 443, 8080]),
        st.sampled_from(["tcp", "udp"]),
        st.lists(
            st.sampled_from(["web.test", "a.web.test", "b.a.web.test", "evil.test", "c.test"]),
            max_size=3,
            unique=True,
        ).map(tuple),
        st.sampled_from(["", "/bin/git", "/bin/curl", "/opt/git"]),
        st.sampled_from(LABELS),
    ),
    min_size=1,
    max_size=8,
)


def compiled(rules: list[Slow]) -> Policy:
    return Policy(
        [
            (
                parsed,
                Terms(
                    rule.allow,
                    programs=rule.programs,
                    labels=rule.labels,
                    source=f"p.toml:{number}",
                ),
            )
            for number, rule in enumerate(rules)
            for parsed in parse_rules(rule.text(), OWN)
        ],
        title="p.toml",
    )


@settings(max_examples=200)
@given(rules_of, calls)
@example(  # an address of NAT64 is held by networks of both versions
    [Slow(False, host, (0, 65535), "", (), {}) for host in ("10.0.0.0/8", "64:ff9b::/96")],
    [Asked("64:ff9b::10.1.2.3", 80, "tcp", (), "", {})],
)
def test_it_decides_as_the_slow_evaluator(rules: list[Slow], asked: list[Asked]) -> None:
    policy = compiled(rules)
    for each in asked:
        wanted = slow_decision(rules, each)
        decision = policy.connect(
            Protocol(each.protocol),
            ip_address(each.host),
            each.port,
            each.names,
            Subject(each.program, each.labels),
        )
        if wanted is None:
            assert (decision.allowed, decision.source) == (False, ""), each
            assert decision.hint.startswith("--allow ")
        else:
            assert (decision.source, decision.allowed) == (
                f"p.toml:{wanted}",
                rules[wanted].allow,
            ), each


@settings(max_examples=60)
@given(rules_of, calls)
def test_what_may_be_remembered_is_so_whoever_asks(rules: list[Slow], asked: list[Asked]) -> None:
    """A decision that is cacheable is the same for every name and program of the same guest."""
    policy = compiled(rules)
    for each in asked:
        where = Protocol(each.protocol), ip_address(each.host), each.port
        kept = policy.connect(*where, each.names, Subject(each.program, each.labels))
        if not kept.cacheable:
            continue
        for other in asked:
            again = policy.connect(*where, other.names, Subject(other.program, each.labels))
            assert again.allowed == kept.allowed, (each, other)


def test_many_rules_about_the_same_host() -> None:
    texts = [f"any:{port}" for port in range(1, 200)] + ["any:50-60/udp", "any"]
    entries = Policy([(r, Terms(True)) for text in texts for r in parse_rules(text)]).entries
    index = Index(entries)
    host = ip_address("192.0.2.1")
    for port, wanted in ((1, "any:1"), (199, "any:199"), (200, "any")):
        found = index.of_node(index.node(host), (host,), Protocol.TCP, port, "")
        assert found is not None
        assert found[1].rule.text == wanted
    bucket = Bucket(0)
    bucket.fill(entries)
    for port in range(3000):  # what is remembered has a bound
        assert [e.rule.text for e in bucket.about(Protocol.TCP, port)][-1] == "any"
    assert len(bucket._known) <= 1024


@settings(max_examples=60)
@given(rules_of, calls)
def test_a_refusal_says_what_comes_next_and_what_would_allow(
    rules: list[Slow], asked: list[Asked]
) -> None:
    policy = compiled(rules)
    for each in asked:
        where = Protocol(each.protocol), ip_address(each.host), each.port
        who = each.names, Subject(each.program, each.labels)
        refused = policy.connect(*where, *who)
        if refused.allowed:
            continue
        said = policy.worded(refused, *where, *who)
        assert said.source == refused.source
        assert (said.source not in said.also) or not said.source
        if said.hint.startswith("--allow "):
            text = said.hint.removeprefix("--allow ")
            wider = [*((e.rule, e.terms) for e in policy.entries)]
            wider += [(rule, Terms(True)) for rule in parse_rules(text)]
            assert Policy(wider, title="p.toml").connect(*where, *who).allowed, (each, said)
