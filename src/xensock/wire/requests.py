"""The requests of v1 and the extensions, as frozen types; `wire.commands` has their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TypeAlias

from .extensions import Extension

SLOT = 64
"""Bytes of a request and of a response in the command ring."""
ADDRESS = 28
"""Bytes that a request has for a socket address."""
OPTION = 36
"""Bytes that a request or response has for an option's value."""
UNIX_ADDRESS = 110
"""Bytes of the longest `struct sockaddr_un` (unix(7))."""
PAGE = 4096


class Command(IntEnum):
    """`cmd`: 0 to 6 are v1's, from 256 on those of extensions."""

    SOCKET = 0
    CONNECT = 1
    RELEASE = 2
    BIND = 3
    LISTEN = 4
    ACCEPT = 5
    POLL = 6
    SHUTDOWN = 256
    GETNAME = 257
    SETOPT = 258
    GETOPT = 259
    CLOSE = 260
    ATTACH = 261
    EXPLAIN = 262


EXTENDED: dict[Command, Extension] = {
    Command.SHUTDOWN: Extension.SHUTDOWN,
    Command.GETNAME: Extension.NAMES,
    Command.SETOPT: Extension.OPTIONS,
    Command.GETOPT: Extension.OPTIONS,
    Command.CLOSE: Extension.CLOSE,
    Command.ATTACH: Extension.DATAGRAMS,
    Command.EXPLAIN: Extension.EXPLAIN,
}
"""The extension that a command belongs to; the others are v1's."""


class ConnectFlag(IntFlag):
    """Bits of CONNECT's `flags`, reserved and ignored in v1."""

    ASYNC = 1
    """async-connect: answer at once."""
    PAGE_ADDRESS = 2
    """unix: the address is in a granted page."""


class CloseFlag(IntFlag):
    """Bits of CLOSE's `flags`."""

    RESET = 1
    """End the connection with a reset instead of in order."""


class How(IntEnum):
    """What SHUTDOWN ends (shutdown(2))."""

    RD = 0
    WR = 1
    RDWR = 2


class Which(IntEnum):
    """The name that GETNAME asks for."""

    OWN = 0
    PEER = 1


@dataclass(frozen=True, slots=True)
class PageAddress:
    """A socket address too long for a request: `length` bytes at the start of page `ref`."""

    family: int
    ref: int
    length: int


@dataclass(frozen=True, slots=True)
class Socket:
    """Make a socket; `id` is the frontend's choice. v1: AF_INET, SOCK_STREAM, protocol 0.

    `hops` (extension hops): how many backends pass its calls on, each to the next, before they come here; at most 255.
    """

    id: int
    domain: int
    type: int
    protocol: int
    hops: int = 0


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect, and map the data ring whose indexes page is grant `ref`, with event channel `port`.

    `address` is a struct sockaddr; with `page` (extension unix) it is empty.
    """

    id: int
    address: bytes
    flags: int
    ref: int
    port: int
    page: PageAddress | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """Close a socket; `reuse` hints that its ring will serve a later one."""

    id: int
    reuse: bool = False


@dataclass(frozen=True, slots=True)
class Bind:
    """Give a socket its own address, a struct sockaddr."""

    id: int
    address: bytes


@dataclass(frozen=True, slots=True)
class Listen:
    """Let a bound socket take connections."""

    id: int
    backlog: int


@dataclass(frozen=True, slots=True)
class Accept:
    """Take a connection of listener `id` as socket `new_id`; answered when there is one."""

    id: int
    new_id: int
    ref: int
    port: int


@dataclass(frozen=True, slots=True)
class Poll:
    """Answered when listener `id` has a connection to accept."""

    id: int


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Extension shutdown: end one direction or both; `how` as in shutdown(2)."""

    id: int
    how: int


@dataclass(frozen=True, slots=True)
class GetName:
    """Extension names: the own (0) or the peer's (1) address."""

    id: int
    which: int


@dataclass(frozen=True, slots=True)
class SetOption:
    """Extension options: setsockopt(2) with Linux's numbers."""

    id: int
    level: int
    name: int
    value: bytes


@dataclass(frozen=True, slots=True)
class GetOption:
    """Extension options: getsockopt(2); the value goes into page `ref`, or the response if 0."""

    id: int
    level: int
    name: int
    length: int
    ref: int = 0


@dataclass(frozen=True, slots=True)
class Close:
    """Extension close: answered at once, what is left in `out` is delivered in the background."""

    id: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Attach:
    """Extension datagrams: map the data ring of a SOCK_DGRAM socket."""

    id: int
    ref: int
    port: int


@dataclass(frozen=True, slots=True)
class Explain:
    """Extension explain: write into page `ref` what was decided about the socket last."""

    id: int
    ref: int


Request: TypeAlias = (
    Socket
    | Connect
    | Release
    | Bind
    | Listen
    | Accept
    | Poll
    | Shutdown
    | GetName
    | SetOption
    | GetOption
    | Close
    | Attach
    | Explain
)
