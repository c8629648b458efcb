"""What a guest asks for, who asks, and what was decided."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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
    """

    allowed: bool
    rule: str
    error: int = 0
    name: str | None = None
    cacheable: bool = True
    hint: str = ""
