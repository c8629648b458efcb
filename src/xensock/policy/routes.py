"""Which stack carries which destination: the guest's ordered table, first match wins.

A route is written RULE=STACK, with the grammar of rules (docs/reference/rules.md): `10.0.0.0/8=vpn`,
`*.corp.example=vpn`, `any:25=host`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock.policy.groups import unmapped
from xensock.policy.names import normal_name
from xensock.policy.rules import Rule, RuleError, parse_rule
from xensock.policy.unix import is_unix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xensock.calls.address import IPAddress
    from xensock.calls.call import Protocol


@dataclass(frozen=True, slots=True)
class Route:
    """Destinations that the rule is about go to the stack of that name."""

    rule: Rule
    stack: str

    @classmethod
    def parse(cls, text: str) -> Route:
        """Raises RuleError."""
        rule, _, stack = text.rpartition("=")
        if not rule or not stack:
            raise RuleError(
                f"malformed route {text!r}", "write RULE=BACKEND, for example 10.0.0.0/8=vpn"
            )
        if is_unix(rule):
            raise RuleError(
                f"route {text!r} is about a unix socket",
                "routes choose where connections to hosts go",
            )
        parsed = parse_rule(rule)
        if parsed.direction != "connect":
            raise RuleError(
                f"route {text!r} is about listening", "routes choose where connections go"
            )
        return cls(parsed, stack)

    def takes(
        self, protocol: Protocol, host: IPAddress, port: int, names: Sequence[str] = ()
    ) -> bool:
        """Whether it is about this destination; `names` are those by which the guest knows it."""
        if not self.rule.takes(protocol, port):
            return False
        if self.rule.addresses is not None:
            return unmapped(host) in self.rule.addresses
        return self.rule.named([normal_name(name) for name in names]) is not None

    def takes_name(self, name: str) -> bool:
        """Whether a question for this name belongs to the stack too."""
        return self.rule.named([normal_name(name)]) is not None


@dataclass(frozen=True, slots=True)
class Routes:
    """The table, and where everything else goes."""

    table: tuple[Route, ...]
    default: str

    def of(self, protocol: Protocol, host: IPAddress, port: int, names: Sequence[str] = ()) -> str:
        """The name of the stack that carries a destination."""
        for route in self.table:
            if route.takes(protocol, host, port, names):
                return route.stack
        return self.default

    def of_name(self, name: str) -> str:
        """The name of the stack that resolves a name."""
        return next((route.stack for route in self.table if route.takes_name(name)), self.default)
