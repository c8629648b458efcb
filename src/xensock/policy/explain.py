"""Why a policy decides a call as it does: the rule, the runners-up, and the smallest rule that would allow it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

from xensock.calls.call import NOBODY, Decision, Protocol
from xensock.policy.entries import ONE_HOST, Entry, Terms, wild_rank
from xensock.policy.groups import destination_forms
from xensock.policy.policy import LAST, Policy, rank_at
from xensock.policy.rules import Rule, RuleError, parse_rule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xensock.calls.address import IPAddress
    from xensock.calls.call import Subject

EXAMPLE = IPv4Address("192.0.2.1")  # where names lead that nobody resolved


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a policy might be asked about. `host`: an address, or a name; None for every local address."""

    direction: str
    protocol: Protocol
    host: IPAddress | str | None
    port: int
    text: str

    @classmethod
    def parse(cls, text: str) -> Call:
        """Read a call, which is written as the rule about it alone would be. Raises RuleError."""
        rule = parse_rule(text)
        protocol = rule.protocol or Protocol.TCP
        everywhere = rule.direction == "listen" and rule.group == "any"
        if not (rule.exact or everywhere or (rule.name and not rule.name.startswith("*"))):
            raise RuleError(
                f"call {text}: more than one host", "name one host, e.g. api.example.test:443"
            )
        if rule.low != rule.high and protocol != Protocol.ICMP:
            raise RuleError(f"call {text}: a port is missing", f"write {text}:443 or another port")
        host: IPAddress | str | None = rule.name or None
        if rule.exact:
            host = rule.networks[0].network_address
        port = 0 if protocol == Protocol.ICMP else rule.low
        return cls(rule.direction, protocol, host, port, text)

    @classmethod
    def of_words(cls, words: Sequence[str]) -> Call:
        """Read a call as it is typed: connect tcp api.example.test:443. Raises RuleError."""
        example = "write it like: connect tcp api.example.test:443"
        if len(words) == 1:
            return cls.parse(words[0])
        direction, *middle, where = words
        if direction not in ("connect", "listen", "accept", "resolve"):
            from xensock.policy.rules import near

            close = near(direction, ("connect", "listen", "accept", "resolve"))
            raise RuleError(
                f"call {direction}: there is no such call",
                f"did you mean {close}?" if close else example,
            )
        if direction == "resolve":
            if middle or not parse_rule(where).name or where.startswith("*"):
                raise RuleError(f"call resolve {where}: not one name", "write: resolve web.test")
            return cls("resolve", Protocol.UDP, parse_rule(where).name, 53, f"resolve {where}")
        if len(middle) > 1 or (middle and middle[0] not in tuple(Protocol)):
            raise RuleError(f"call {' '.join(words)}: not understood", example)
        protocol = f"/{middle[0]}" if middle else ""
        prefix = "" if direction == "connect" else f"{direction}:"
        return cls.parse(f"{prefix}{where}{protocol}")


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and what is behind it.

    others    the other rules that match, the next best first
    smallest  the smallest rule that would allow a refused call; "" where none would
    """

    decision: Decision
    others: tuple[Entry, ...]
    smallest: str = ""


def decide(policy: Policy, call: Call, address: IPAddress | None, subject: Subject) -> Decision:
    """What the policy says. `address` is where a name leads."""
    if call.direction == "listen":
        local = call.host if call.host is not None else IPv6Address(0)
        return policy.listen(call.protocol, _address(local), call.port, subject=subject)
    if call.direction == "accept":
        return policy.accept(_address(call.host), call.port, subject.program, subject)
    if isinstance(call.host, str):
        found = policy.resolve(call.host, subject)
        if call.direction == "resolve" or not found.allowed:
            return found
        where = address or EXAMPLE
        return policy.connect(call.protocol, where, call.port, (call.host,), subject)
    return policy.connect(call.protocol, _address(call.host), call.port, (), subject)


def explain(
    policy: Policy, call: Call, address: IPAddress | None = None, subject: Subject = NOBODY
) -> Explanation:
    """Why a call is decided as it is."""
    decision = decide(policy, call, address, subject)
    others = [
        entry
        for _, entry in matching(policy, call, address, subject)
        if (entry.rule.text, entry.terms.source) != (decision.rule, decision.source)
    ]
    smallest = ""
    if not decision.allowed:
        smallest = _smallest(policy, call, address, subject)
    return Explanation(decision, tuple(others), smallest)


def matching(
    policy: Policy, call: Call, address: IPAddress | None = None, subject: Subject = NOBODY
) -> list[tuple[int, Entry]]:
    """All rules that are about a call, the best first, with how specific their host is."""
    found = []
    for entry in policy.entries:
        rule = entry.rule
        if call.direction == "resolve":
            if rule.named([str(call.host)]) is None or not entry.holds(subject.labels):
                continue
        elif rule.direction != call.direction or not entry.suits(call.protocol, call.port, subject):
            continue
        rank = _rank(rule, call, address)
        if rank is not None:
            found.append((LAST if entry.terms.final else rank, entry))
    return sorted(found, key=lambda each: (each[0], each[1].key), reverse=True)


def _rank(rule: Rule, call: Call, address: IPAddress | None) -> int | None:
    if call.host is None:
        return 0 if rule.addresses is not None else None
    if rule.name:
        if not isinstance(call.host, str) or rule.named([call.host]) is None:
            return None
        return wild_rank(rule.name[1:]) if rule.name.startswith("*") else ONE_HOST
    host = (address or EXAMPLE) if isinstance(call.host, str) else call.host
    forms = destination_forms(host) if call.direction != "listen" else (host,)
    assert rule.addresses is not None
    if call.direction == "resolve" or not any(form in rule.addresses for form in forms):
        return None
    return max(rank_at(rule, form) for form in forms)


def _smallest(policy: Policy, call: Call, address: IPAddress | None, subject: Subject) -> str:
    """The narrowest rule with which the call is allowed."""
    for text in _candidates(call, address):
        try:
            rule = parse_rule(text)
        except RuleError:
            continue
        wider = Policy(
            [(rule, Terms(True)), *((entry.rule, entry.terms) for entry in policy.entries)],
            title=policy.title,
        )
        if decide(wider, call, address, subject).allowed:
            return text
    return ""


def _candidates(call: Call, address: IPAddress | None) -> list[str]:
    suffix = f"/{call.protocol}"
    port = "" if call.protocol == Protocol.ICMP else f":{call.port}"
    if call.direction == "resolve":
        return [str(call.host)]
    prefix = "" if call.direction == "connect" else f"{call.direction}:"
    if call.direction == "accept":
        suffix = ""
    hosts = ["any"] if call.host is None else [_spelt(call.host)]
    if isinstance(call.host, str) and address is not None:
        hosts.append(_spelt(address))
    plain = [f"{prefix}{host}{port}" for host in hosts] if call.protocol == Protocol.TCP else []
    return [*plain, *(f"{prefix}{host}{port}{suffix}" for host in hosts)]


def _spelt(host: IPAddress | str) -> str:
    if isinstance(host, str):
        return host if "." in host else f"{host}."
    return f"[{host}]" if host.version == 6 else str(host)


def _address(host: IPAddress | str | None) -> IPAddress:
    return ip_address(str(host))
