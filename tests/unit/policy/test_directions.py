"""Rules of a file about listeners and clients: the compiled policy decides as a slow evaluator that asks every rule."""

from __future__ import annotations

from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from xensock.calls import Protocol, Subject
from xensock.policy import Policy
from xensock.policy.entries import Terms
from xensock.policy.rules import parse_rules

if TYPE_CHECKING:
    from collections.abc import Mapping

NETS = [
    "0.0.0.0/0",
    "::/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.3",
    "2001:db8::/32",
    "2001:db8::1",
]
HOSTS = ["10.1.2.3", "10.1.9.9", "10.9.9.9", "203.0.113.9", "2001:db8::1", "2001:db8::2", "2a00::1"]
WILD = {"0.0.0.0": (4,), "::": (6, 4)}
PORTS = [(0, 65535), (80, 80), (80, 90), (1, 1000)]
PROGRAMS: list[tuple[str, ...]] = [(), ("/bin/web",), ("/bin/*",)]
LABELS: list[Mapping[str, str]] = [{}, {"team": "web"}, {"team": "web", "env": "ci"}]


class Slow(NamedTuple):
    direction: str
    allow: bool
    host: str
    ports: tuple[int, int]
    protocol: str
    programs: tuple[str, ...]
    labels: Mapping[str, str]

    def text(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        ports = "" if self.ports == (0, 65535) else f":{self.ports[0]}-{self.ports[1]}"
        tail = f"/{self.protocol}" if self.protocol else ""
        return f"{self.direction}:{host}{ports}{tail}"


class Asked(NamedTuple):
    host: str
    port: int
    protocol: str
    program: str
    labels: Mapping[str, str]


def key(rule: Slow, rank: int, number: int) -> tuple[int, ...]:
    """How specific a rule is, of those that are about a call: as docs/reference/policy.md has it."""
    low, high = rule.ports
    program = 0 if not rule.programs else 1 if "*" in rule.programs[0] else 2
    return (
        rank,
        low - high,
        bool(rule.protocol),
        program,
        len(rule.labels),
        not rule.allow,
        -number,
    )


def best(rules: list[Slow], about: dict[int, int]) -> int | None:
    """The number of the most specific rule, of those by the ranks of their hosts."""
    return max(about, key=lambda n: key(rules[n], about[n], n), default=None)


def takes(rule: Slow, asked: Asked, direction: str) -> bool:
    return (
        rule.direction == direction
        and rule.ports[0] <= asked.port <= rule.ports[1]
        and rule.protocol in ("", asked.protocol)
        and (not rule.programs or any(fnmatchcase(asked.program, p) for p in rule.programs))
        and all(asked.labels.get(name) == value for name, value in rule.labels.items())
    )


def at_one(rules: list[Slow], asked: Asked, direction: str) -> int | None:
    """The rule that decides about one address."""
    host, about = ip_address(asked.host), {}
    for number, rule in enumerate(rules):
        net = ip_network(rule.host)
        if takes(rule, asked, direction) and net.version == host.version and host in net:
            whole = net.prefixlen == net.max_prefixlen
            about[number] = 1000 if whole else net.prefixlen + (96 if host.version == 4 else 0)
    return best(rules, about)


def at_all(rules: list[Slow], asked: Asked, version: int) -> int | None:
    """The rule that decides about every address of a version: one that takes them all, or refuses any of them."""
    about = {}
    for number, rule in enumerate(rules):
        net = ip_network(rule.host)
        if not takes(rule, asked, "listen") or net.version != version:
            continue
        if net.prefixlen == 0:
            about[number] = 0
        elif not rule.allow:
            about[number] = 1
    return best(rules, about)


def slow_listen(rules: list[Slow], asked: Asked) -> set[int] | None:
    """The rules that decide; None where there is none for some of it."""
    if asked.host in WILD:
        found = [at_all(rules, asked, version) for version in WILD[asked.host]]
    else:
        found = [at_one(rules, asked, "listen")]
    denying = [n for n in found if n is not None and not rules[n].allow]
    if denying:
        return {denying[0]}
    deciding = {n for n in found if n is not None}
    return None if None in found else deciding


rules_of = st.lists(
    st.builds(
        Slow,
        st.sampled_from(["listen", "accept"]),
        st.booleans(),
        st.sampled_from(NETS),
        st.sampled_from(PORTS),
        st.sampled_from(["", "tcp"]),
        st.sampled_from(PROGRAMS),
        st.sampled_from(LABELS),
    ).map(lambda rule: rule._replace(programs=()) if rule.direction == "accept" else rule),
    max_size=12,
)
calls = st.builds(
    Asked,
    st.sampled_from([*HOSTS, *WILD]),
    st.sampled_from([80, 85, 443, 8080]),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from(["", "/bin/web", "/opt/web"]),
    st.sampled_from(LABELS),
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
            for parsed in parse_rules(rule.text(), {})
        ],
        title="p.toml",
    )


def judged(rules: list[Slow], asked: Asked) -> bool:
    """Whether some rule may refuse a client of a listener there."""
    return asked.protocol == "tcp" and any(
        rule.direction == "accept"
        and rule.ports[0] <= asked.port <= rule.ports[1]
        and all(asked.labels.get(name) == value for name, value in rule.labels.items())
        for rule in rules
    )


@settings(max_examples=300)
@given(rules_of, calls)
def test_listeners(rules: list[Slow], asked: Asked) -> None:
    subject = Subject(asked.program, asked.labels)
    decision = compiled(rules).listen(
        Protocol(asked.protocol), ip_address(asked.host), asked.port, False, subject
    )
    expected = slow_listen(rules, asked)
    if expected is None:
        assert (decision.allowed, decision.source) == (False, "")
        return
    assert decision.source in {f"p.toml:{number}" for number in expected}
    assert decision.allowed == all(rules[number].allow for number in expected)
    if decision.allowed:
        # Whoever is admitted by rule comes over the relay, which is where clients are asked about.
        assert decision.needs_relay == judged(rules, asked)


@settings(max_examples=300)
@given(rules_of, calls)
def test_clients(rules: list[Slow], asked: Asked) -> None:
    if asked.host in WILD:
        return
    asked = asked._replace(protocol="tcp", program="")
    subject = Subject(labels=asked.labels)
    decision = compiled(rules).accept(ip_address(asked.host), asked.port, subject=subject)
    decides = at_one(rules, asked, "accept")
    if decides is not None:
        assert (decision.source, decision.allowed) == (f"p.toml:{decides}", rules[decides].allow)
        return
    # Rules that allow clients refuse all others, whatever ports they are about.
    holding = [rule for rule in rules if rule.direction == "accept" and rule.allow]
    closed = any(
        all(asked.labels.get(name) == value for name, value in rule.labels.items())
        for rule in holding
    )
    assert (decision.allowed, decision.source) == (not closed, "")
