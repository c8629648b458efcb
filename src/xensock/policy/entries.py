"""Rules as a policy holds them: who may do what, how it is carried out, and which of two rules is the more specific.

A rule is more specific than another by, in this order: its host (one host, then a name with `*` by how many labels
it has, then a network by its length; a group counts as the network of it that holds the address), how few ports it
has, whether it names a protocol, a program (a path, then a pattern), and how many labels it asks for. The deny rule
comes first among equals, then the one that is written first.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from xensock.calls.call import Decision
from xensock.policy.groups import GROUPS
from xensock.policy.networks import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xensock.calls.address import Endpoint
    from xensock.calls.call import Limit, Protocol, Subject
    from xensock.policy.groups import AddressSet, IPNetwork
    from xensock.policy.rules import Rule

ONE_HOST = 1000
_WILD = 200  # and the number of labels; above every network
_V4 = 96  # IPv4 networks count as those of ::ffff:0:0/96
_NAMED = 256  # decisions by name that a rule remembers

Key = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Terms:
    """What a rule says beside where: for whom it holds, and how its calls are carried out (see Decision)."""

    allow: bool
    final: bool = False  # an option --deny, which no rule outranks
    programs: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    redirect: Endpoint | str | None = None
    via: tuple[str, ...] = ()
    limit: Limit | None = None
    verify: Literal["sni", "host"] | None = None
    close_on_reload: bool = False
    source: str = ""

    @property
    def plain(self) -> bool:
        """Whether an allowed call is carried out as it is."""
        return not (self.redirect or self.via or self.limit or self.verify)

    @property
    def elsewhere(self) -> bool:
        """Whether the backend's own network is not, or not the only one, that may carry its calls."""
        return self.via not in ((), (HOST,))


class Entry:
    """One rule of a policy."""

    __slots__ = (
        "_named",
        "addresses",
        "allow",
        "always",
        "conditional",
        "exact",
        "for_now",
        "high",
        "holes",
        "key",
        "low",
        "name",
        "order",
        "plain",
        "program",
        "protocol",
        "rule",
        "terms",
    )

    def __init__(self, rule: Rule, terms: Terms, order: int) -> None:
        self.rule = rule
        self.terms = terms
        self.order = order
        self.name = rule.name
        self.addresses: AddressSet | None = rule.addresses
        self.exact = rule.exact
        self.low, self.high = rule.low, rule.high
        self.protocol: Protocol | None = rule.protocol
        self.allow = terms.allow
        self.plain = terms.plain
        self.program = _matcher(terms.programs)
        self.conditional = bool(rule.name or self.program)
        self.holes = rule.addresses is GROUPS["public"]
        patterns = any("*" in program for program in terms.programs)
        self.key: Key = (
            65535 - (rule.high - rule.low),
            int(rule.protocol is not None),
            (2 - patterns) if terms.programs else 0,
            len(terms.labels),
            int(not terms.allow),
            -order,
        )
        cacheable = self.plain and self.program is None
        self.always = self._decision(None, cacheable and not rule.name)
        self.for_now = self._decision(
            None if rule.name.startswith("*") else rule.name or None, False
        )
        self._named: dict[str, Decision] = {}

    def takes(self, protocol: Protocol, port: int, program: str) -> bool:
        """Whether it is about this port, and this program's calls."""
        return (
            self.low <= port <= self.high
            and (self.protocol is None or self.protocol == protocol)
            and (self.program is None or self.program.fullmatch(program) is not None)
        )

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether it holds for a guest with these labels."""
        return all(labels.get(key) == value for key, value in self.terms.labels.items())

    def suits(self, protocol: Protocol, port: int, subject: Subject) -> bool:
        """Whether it is about these calls of this guest; what `Rule.takes` says of port 0 included."""
        return (
            self.rule.takes(protocol, port)
            and (self.program is None or self.program.fullmatch(subject.program) is not None)
            and self.holds(subject.labels)
        )

    def by_name(self, name: str) -> Decision:
        """The decision for a call that matches by this name."""
        if name == self.name:
            return self.for_now
        found = self._named.get(name)
        if found is None:
            if len(self._named) >= _NAMED:
                self._named.clear()
            found = self._named[name] = self._decision(name, False)
        return found

    def _decision(self, name: str | None, cacheable: bool) -> Decision:
        terms, text = self.terms, self.rule.text
        if not terms.allow:
            hint = f"change the rule at {terms.source}" if terms.source else f"remove --deny {text}"
            return Decision(
                False,
                text,
                errno.EACCES,
                name,
                cacheable,
                hint,
                close_on_reload=terms.close_on_reload,
                source=terms.source,
            )
        return Decision(
            True,
            text,
            name=name,
            cacheable=cacheable,
            redirect=terms.redirect,
            via=terms.via,
            limit=terms.limit,
            verify=terms.verify,
            needs_relay=bool(terms.limit or terms.verify or terms.redirect or terms.elsewhere),
            source=terms.source,
        )


def wild_rank(name: str) -> int:
    """How specific the host of a rule for `*.name` is."""
    return _WILD + name.count(".")


def network_rank(network: IPNetwork) -> int:
    """How specific a network is as the host of a rule."""
    if network.prefixlen == network.max_prefixlen:
        return ONE_HOST
    return network.prefixlen + (_V4 if network.version == 4 else 0)


@lru_cache(maxsize=1024)
def _matcher(programs: tuple[str, ...]) -> re.Pattern[str] | None:
    """Matches the paths of programs; `*` stands for anything. A link means the file that it leads to, too."""
    if not programs:
        return None
    paths = {path for each in programs for path in (each, _real(each))}
    return re.compile("|".join(translate(path) for path in sorted(paths)))


def _real(path: str) -> str:
    return path if "*" in path else os.path.realpath(path)
