"""The policy point: may this guest connect there, listen here, resolve this name?

Rules
- A deny rule that matches wins, however specific an allow rule is.
- With an allow rule for connecting, every other destination is refused; with one for listening,
  every other local address and port. Without: connect to public and private addresses, listen
  on port 0 and from 1024 on.
- The host's loopback, link-local addresses and metadata services open only to a rule that names
  them: by their group, by an exact address, by a network inside the group. `any`, a wide network,
  or a name do not open them: whoever answers for an allowed name could point it at the host.
- A deny rule by address also holds for the form of it that a NAT64 gateway translates. An allow
  rule for a group must hold for both forms.
- A socket bound to 0.0.0.0 listens on every IPv4 address, one bound to :: on every address there
  is: allowed only if all of them are, refused if one of them is. Port 0 is "some free port"; ask
  again once its number is known.
- Names: see `Policy.resolve`.
"""

from __future__ import annotations

import errno
from itertools import count
from typing import TYPE_CHECKING

from xensock.calls.call import NOBODY, Decision, Protocol
from xensock.policy.groups import GROUPS, AddressSet, destination_forms, protected_group, unmapped
from xensock.policy.names import normal_name
from xensock.policy.rules import Rule, RuleError, parse_rule
from xensock.policy.unix import UnixRules, is_unix, parse_unix

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xensock.calls.address import IPAddress
    from xensock.calls.call import Subject

_generations = count(1)
_KNOWN = 4096  # destinations whose decision is remembered

_PROTECTED = {
    "loopback": "default: host loopback",
    "metadata": "default: metadata service",
    "linklocal": "default: link-local address",
}
# Groups to which any name may lead; see Policy.resolve.
_WIDE = ("any", "public", "private")


class Policy:
    """An immutable set of rules. `generation` differs between any two policies of a process:
    an answer that was cached under another generation is void. `programs_needed`: whether any rule
    asks which program calls; otherwise nobody need find out."""

    programs_needed = False

    def __init__(
        self, allow: Iterable[Rule], deny: Iterable[Rule], unix: UnixRules | None = None
    ) -> None:
        allow, deny = tuple(allow), tuple(deny)
        self.generation = next(_generations)
        self._unix = unix or UnixRules()
        self._allow = _Side(rule for rule in allow if rule.direction == "connect")
        self._deny = _Side(rule for rule in deny if rule.direction == "connect")
        self._listen_allow = tuple(rule for rule in allow if rule.direction == "listen")
        self._listen_deny = tuple(rule for rule in deny if rule.direction == "listen")
        self._known: dict[tuple[Protocol, IPAddress, int], Decision] = {}
        self.names_needed = bool(self._allow.by_name or self._deny.by_name)
        self._names_closed = bool(self._allow.by_name) and not any(
            rule.group in _WIDE or _set(rule).whole(4) or _set(rule).whole(6)
            for rule in self._allow.by_address
        )

    @classmethod
    def parse(cls, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> Policy:
        """Read the rules as given on the command line. Raises RuleError for the first bad one."""
        unix = UnixRules(*(map(parse_unix, filter(is_unix, texts)) for texts in (allow, deny)))
        sides = [[parse_rule(t) for t in texts if not is_unix(t)] for texts in (allow, deny)]
        return cls(sides[0], sides[1], unix)

    def connect(
        self,
        protocol: Protocol,
        host: IPAddress,
        port: int,
        names: Sequence[str] = (),
        subject: Subject = NOBODY,
    ) -> Decision:
        """May the guest reach this destination? `names` are those by which it learned the
        address (`Names.of`). Refused with EACCES."""
        key = (protocol, host, port)
        decision = self._known.get(key)
        if decision is None:
            decision = self._connect(protocol, host, port, names)
            if decision.allowed and decision.cacheable:  # a refusal's hint depends on the names
                if len(self._known) >= _KNOWN:
                    self._known.clear()
                self._known[key] = decision
        return decision

    def _connect(
        self, protocol: Protocol, host: IPAddress, port: int, names: Sequence[str]
    ) -> Decision:
        names = [normal_name(name) for name in names]
        forms = destination_forms(host)
        for rule in self._deny.by_address:
            if rule.takes(protocol, port) and any(form in _set(rule) for form in forms):
                return _denied(rule)
        fixed = True
        for rule in self._deny.by_name:
            if rule.takes(protocol, port):
                fixed = False
                name = rule.named(names)
                if name is not None:
                    return _denied(rule, name)
        for rule in self._allow.by_address:
            if rule.takes(protocol, port) and _allows(rule, forms):
                return Decision(True, rule.text, cacheable=fixed)
        closed = any(protected_group(form) for form in forms)
        for rule in self._allow.by_name:
            if rule.takes(protocol, port) and not closed:
                fixed = False
                name = rule.named(names)
                if name is not None:
                    return Decision(True, rule.text, name=name, cacheable=False)
        return self._otherwise(protocol, forms, port, names, fixed)

    def _otherwise(
        self,
        protocol: Protocol,
        forms: tuple[IPAddress, ...],
        port: int,
        names: Sequence[str],
        fixed: bool,
    ) -> Decision:
        """What holds for a destination that no rule decided."""
        protected = next((group for group in map(protected_group, forms) if group), None)
        if protected:
            reason = _PROTECTED[protected]
        elif self._allow:
            reason = "default: not in --allow"
        else:
            groups = [
                next((g for g in ("public", "private") if form in GROUPS[g]), None)
                for form in forms
            ]
            if None not in groups:
                return Decision(True, f"default: {groups[0]} addresses", cacheable=fixed)
            reason = "default: neither public nor private"
        hint = _connect_hint(protocol, forms[0], port, () if protected else names)
        return Decision(False, reason, errno.EACCES, cacheable=fixed, hint=hint)

    def listen(
        self,
        protocol: Protocol,
        host: IPAddress,
        port: int,
        v6only: bool = False,
        subject: Subject = NOBODY,
    ) -> Decision:
        """May the guest listen (for UDP: be bound) at this local address? `v6only` matters for
        `::` alone (IPV6_V6ONLY). Refused with EACCES."""
        host = unmapped(host)
        versions: tuple[int, ...] = ()
        if int(host) == 0:
            versions = (6, 4) if host.version == 6 and not v6only else (host.version,)
        for rule in self._listen_deny:
            if rule.takes(protocol, port):
                rule_set = _set(rule)
                if any(map(rule_set.touches, versions)) or (not versions and host in rule_set):
                    return _denied(rule)
        able = [rule for rule in self._listen_allow if rule.takes(protocol, port)]
        if versions:
            deciding = [next((r for r in able if _set(r).whole(v)), None) for v in versions]
        else:
            deciding = [next((r for r in able if host in _set(r)), None)]
        if None not in deciding:
            texts = dict.fromkeys(rule.text for rule in deciding if rule)
            return Decision(True, ", ".join(texts))
        if self._listen_allow:
            reason = "default: not in --allow listen:"
        elif port == 0 or port >= 1024:
            return Decision(True, "default: ports from 1024")
        else:
            reason = "default: ports below 1024"
        where = "any" if versions else _literal(host)
        hint = f"--allow listen:{where}:{port}{_suffix(protocol)}"
        return Decision(False, reason, errno.EACCES, hint=hint)

    def unix(self, path: str) -> Decision:
        """May the guest reach this socket of the host's file system? Refused with EACCES."""
        return self._unix.connect(path)

    def resolve(self, name: str) -> Decision:
        """May the guest resolve this name? Refused with NXDOMAIN (`error` is 0).

        Refused are names that a deny rule without port and protocol matches, and, as soon as an
        allow rule is by name, all that no allow rule matches: what cannot be connected to need
        not be asked for, and a question to a name server can carry data out. Rules by address
        alone close no names, nor do rules by name beside one for any, public or private (or
        0.0.0.0/0, ::/0), as every name may lead there. `localhost` is the guest's own.
        """
        wanted = normal_name(name)
        for rule in self._deny.by_name:
            if rule.every_port and rule.named((wanted,)) is not None:
                return _denied(rule, wanted, error=0, cacheable=True)
        for rule in self._allow.by_name:
            if rule.named((wanted,)) is not None:
                return Decision(True, rule.text, name=wanted)
        if wanted == "localhost" or wanted.endswith(".localhost"):
            return Decision(True, "default: the guest's own name")
        if not self._names_closed:
            return Decision(True, "default: names resolve")
        text = _name_literal(wanted)
        return Decision(
            False,
            "default: name not in --allow",
            hint=f"--allow {text}" if text else "",
        )


class _Side:
    """The connect rules of one kind, by address and by name, each in the order given."""

    __slots__ = ("by_address", "by_name")

    def __init__(self, rules: Iterable[Rule]) -> None:
        rules = tuple(rules)
        self.by_address = tuple(rule for rule in rules if rule.addresses is not None)
        self.by_name = tuple(rule for rule in rules if rule.name)

    def __bool__(self) -> bool:
        return bool(self.by_address or self.by_name)


def _set(rule: Rule) -> AddressSet:
    assert rule.addresses is not None  # callers hold a rule by address
    return rule.addresses


def _allows(rule: Rule, forms: tuple[IPAddress, ...]) -> bool:
    """Whether an allow rule by address opens this destination."""
    held = _set(rule)
    if not (all(form in held for form in forms) if rule.group else forms[0] in held):
        return False
    return rule.exact or all(
        group is None or group in rule.opens for group in map(protected_group, forms)
    )


def _denied(
    rule: Rule, name: str | None = None, error: int = errno.EACCES, cacheable: bool | None = None
) -> Decision:
    if cacheable is None:
        cacheable = name is None
    return Decision(False, rule.text, error, name, cacheable, f"remove --deny {rule.text}")


def _suffix(protocol: Protocol) -> str:
    return "" if protocol == Protocol.TCP else f"/{protocol}"


def _literal(host: IPAddress) -> str:
    return f"[{host}]" if host.version == 6 else str(host)


def _name_literal(name: str, rest: str = "") -> str | None:
    """The rule text for a name; it came from the guest and may be unfit for one."""
    for text in (f"{name}{rest}", f"{name}.{rest}"):
        try:
            rule = parse_rule(text)
        except RuleError:
            continue
        if rule.name == name and not name.startswith("*") and rule.direction == "connect":
            return text
    return None


def _connect_hint(protocol: Protocol, host: IPAddress, port: int, names: Sequence[str]) -> str:
    rest = _suffix(protocol) if protocol == Protocol.ICMP else f":{port}{_suffix(protocol)}"
    if host in GROUPS["loopback"]:
        return f"--allow loopback{rest}"
    for name in names:
        text = _name_literal(name, rest)
        if text:
            return f"--allow {text}"
    return f"--allow {_literal(host)}{rest}"
