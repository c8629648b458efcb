"""What a guest asks for, who asks, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xensock.calls.address import Endpoint


class Verb(StrEnum):
    """The calls that the backend sees."""

    SOCKET = "socket"
    CONNECT = "connect"
    BIND = "bind"
    LISTEN = "listen"
    ACCEPT = "accept"
    SEND = "send"
    RESOLVE = "resolve"
    SETSOCKOPT = "setsockopt"
    IOCTL = "ioctl"
    PUBLISH = "publish"
    CLOSE = "close"
    COUNT = "count"  # no call: how many of something there were, when the guest has ended


class Protocol(StrEnum):
    """Transport protocols that rules can tell apart."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"  # echo, of ICMP and ICMPv6; its port is 0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made a call: the guest's name, the pid as the host sees it, the program's short name.

    `program` comes from the guest and may hold any character; escape it before showing it.
    """

    guest: str
    pid: int
    program: str


@dataclass(frozen=True, slots=True)
class Subject:
    """Who asks, as far as rules can tell: the path of the program's file, and the guest's labels.

    program  as the host sees it; "" where it is not known, which no rule about programs matches
    """

    program: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


NOBODY = Subject()


@dataclass(frozen=True, slots=True)
class Limit:
    """What a rule grants a guest at most, of all its calls by that rule together; None is without bound.

    rate        bytes per second, each way
    connects    new connections per second
    concurrent  connections that are open at once
    """

    rate: int | None = None
    connects: float | None = None
    concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The policy's answer to one call.

    rule       text of the rule, or of the default, that decided
    error      errno for the guest when refused (0 when allowed, and for a refused name, whose
               answer is NXDOMAIN)
    name       the name by which the rule matched, if it matched by name
    cacheable  whether the same call gets the same answer until the policy's generation changes;
               False when the answer depended on a name that was resolved earlier
    hint       for a refused call: the smallest rule that would allow it, as command-line option,
               or what stands in the way

    How an allowed call is carried out; what is None or False has no say:
    redirect         where to connect instead: an endpoint, or the path of a unix socket of the host
    via              the networks that may carry it, by their names: the first that can be reached does; ()
                     where routes decide
    limit            what the rule grants at most; `source` and `rule` tell one rule from another
    verify           "sni" or "host": the first bytes must name `name`, else the connection is reset
    needs_relay      whether only the relay (or a ring) can carry it as the rule says
    close_on_reload  of a refusal: whether a connection that it is about ends when the policy comes into force
    source           where the rule is written, as FILE:LINE; "" for options and defaults
    also             of a refused call that is recorded: the rules that come next, the best first
    """

    allowed: bool
    rule: str
    error: int = 0
    name: str | None = None
    cacheable: bool = True
    hint: str = ""
    redirect: Endpoint | str | None = None
    via: tuple[str, ...] = ()
    limit: Limit | None = None
    verify: Literal["sni", "host"] | None = None
    needs_relay: bool = False
    close_on_reload: bool = False
    source: str = ""
    also: str = ""

    def by(self, network: str) -> Decision:
        """The same, whose rule says which of its networks carried the call."""
        return replace(self, rule=f"{self.rule} via {network}")
