"""The messages of the local transport: one per packet of a SOCK_SEQPACKET unix socket.

A header of 16 bytes: `type` u32 @0, `length` u32 @4 of the payload, `a` u32 @8, `b` u32 @12; at most
64 KiB. Some carry descriptors (unix(7), SCM_RIGHTS): `descriptors()` says how many.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from .errors import WireError

VERSION = 1
LARGEST = 64 * 1024
LONGEST_NAME = 64
_HEAD = struct.Struct("<IIII")
HEADER = _HEAD.size


class Type(IntEnum):
    """`type`: below 16 from the frontend, from 16 on from the backend."""

    HELLO = 1
    MEMORY = 2
    EVENT = 3
    UNEVENT = 4
    WRITE = 5
    UNMAP = 6
    WELCOME = 16
    NODES = 17
    GOODBYE = 18
    SHARED = 19
    PEER = 20


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message: the protocol's version and the guest's name, UTF-8, at most 64 bytes."""

    name: str
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Memory:
    """Pages of a memfd (one descriptor), granted as references `first` to `first + pages - 1`."""

    first: int
    pages: int


@dataclass(frozen=True, slots=True)
class Event:
    """An event channel, two eventfds: [0] the frontend writes, [1] the backend writes."""

    port: int


@dataclass(frozen=True, slots=True)
class Unevent:
    """The event channel `port` is gone."""

    port: int


@dataclass(frozen=True, slots=True)
class Write:
    """Nodes of the frontend, relative to its device directory: one transaction."""

    nodes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Unmap:
    """The region that begins with reference `first` is withdrawn."""

    first: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to Hello."""

    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes of the backend that are new or changed, `state` among them."""

    nodes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Why the backend closes the connection; its last message."""

    reason: str


@dataclass(frozen=True, slots=True)
class Shared:
    """Extension shared-rings: pages of the backend's (a memfd, one descriptor) for a connection that
    is joined with another guest's; `number` names them to this frontend."""

    number: int
    pages: int


@dataclass(frozen=True, slots=True)
class Peer:
    """Extension shared-rings: the other guest has come to the pages `number`; one descriptor, the
    eventfd that wakes it."""

    number: int


FrontMessage: TypeAlias = Hello | Memory | Event | Unevent | Write | Unmap
BackMessage: TypeAlias = Welcome | Nodes | Goodbye | Shared | Peer
Message: TypeAlias = FrontMessage | BackMessage


def descriptors(message: Message) -> int:
    """How many descriptors travel with a message."""
    return {Memory: 1, Event: 2, Shared: 1, Peer: 1}.get(type(message), 0)


def encode(message: Message) -> bytes:
    """The packet of a message. Raises WireError for what it cannot carry."""
    match message:
        case Hello(name, version):
            raw = _bytes(name)
            if not 0 < len(raw) <= LONGEST_NAME:
                raise WireError(f"the guest's name has 1 to {LONGEST_NAME} bytes")
            return _packet(Type.HELLO, version, payload=raw)
        case Memory(first, pages):
            return _packet(Type.MEMORY, first, pages)
        case Event(port):
            return _packet(Type.EVENT, port)
        case Unevent(port):
            return _packet(Type.UNEVENT, port)
        case Write(nodes):
            return _packet(Type.WRITE, payload=_pack_nodes(nodes))
        case Unmap(first):
            return _packet(Type.UNMAP, first)
        case Welcome(version):
            return _packet(Type.WELCOME, version)
        case Nodes(nodes):
            return _packet(Type.NODES, payload=_pack_nodes(nodes))
        case Goodbye(reason):
            return _packet(Type.GOODBYE, payload=_bytes(reason))
        case Shared(number, pages):
            return _packet(Type.SHARED, number, pages)
        case Peer(number):
            return _packet(Type.PEER, number)


def _packet(type: Type, a: int = 0, b: int = 0, payload: bytes = b"") -> bytes:
    if HEADER + len(payload) > LARGEST:
        raise WireError(f"a message of {HEADER + len(payload)} bytes, at most {LARGEST}")
    try:
        return _HEAD.pack(type, len(payload), a, b) + payload
    except struct.error as why:
        raise WireError(f"{type.name}: {why}") from why


def decode_front(packet: bytes) -> FrontMessage:
    """What a frontend sent. Raises WireError for anything else."""
    type, a, b, payload = _split(packet)
    if payload and type not in (Type.HELLO, Type.WRITE):
        raise WireError(f"a payload of {len(payload)} bytes with {type.name}")
    match type:
        case Type.HELLO:
            if not 0 < len(payload) <= LONGEST_NAME:
                raise WireError(f"a guest's name of {len(payload)} bytes")
            return Hello(_text(payload), a)
        case Type.MEMORY:
            if a == 0 or b == 0 or a + b > 1 << 32:
                raise WireError(f"{b} pages from reference {a} on")
            return Memory(a, b)
        case Type.EVENT:
            return Event(_port(a))
        case Type.UNEVENT:
            return Unevent(_port(a))
        case Type.WRITE:
            return Write(_split_nodes(payload))
        case Type.UNMAP:
            return Unmap(a)
        case _:
            raise WireError(f"{type.name} comes from a backend only")


def decode_back(packet: bytes) -> BackMessage:
    """What a backend sent. Raises WireError for anything else."""
    type, a, b, payload = _split(packet)
    if payload and type in (Type.SHARED, Type.PEER):
        raise WireError(f"a payload of {len(payload)} bytes with {type.name}")
    match type:
        case Type.SHARED:
            if a == 0 or b == 0:
                raise WireError(f"{b} shared pages with the number {a}")
            return Shared(a, b)
        case Type.PEER:
            return Peer(a)
        case Type.WELCOME:
            return Welcome(a)
        case Type.NODES:
            return Nodes(_split_nodes(payload))
        case Type.GOODBYE:
            return Goodbye(_text(payload))
        case _:
            raise WireError(f"{type.name} comes from a frontend only")


def _split(packet: bytes) -> tuple[Type, int, int, bytes]:
    if not HEADER <= len(packet) <= LARGEST:
        raise WireError(f"a message of {len(packet)} bytes")
    number, length, a, b = _HEAD.unpack_from(packet)
    if length != len(packet) - HEADER:
        raise WireError(f"a payload of {len(packet) - HEADER} bytes that claims {length}")
    try:
        return Type(number), a, b, packet[HEADER:]
    except ValueError:
        raise WireError(f"message type {number}") from None


def _port(port: int) -> int:
    if port == 0:
        raise WireError("port 0 is no event channel")
    return port


def _bytes(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as why:
        raise WireError(f"{text!a} is no text") from why


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise WireError("text that is not UTF-8") from None


def _pack_nodes(nodes: dict[str, str]) -> bytes:
    words = [word for node in nodes.items() for word in node]
    if any("\0" in word for word in words) or "" in nodes:
        raise WireError("a node with an empty key or a NUL in it")
    return b"".join(_bytes(word) + b"\0" for word in words)


def _split_nodes(payload: bytes) -> dict[str, str]:
    if not payload:
        return {}
    if not payload.endswith(b"\0"):
        raise WireError("nodes that do not end with NUL")
    words = _text(payload).split("\0")[:-1]
    if len(words) % 2:
        raise WireError("a node without a value")
    keys = words[::2]
    if "" in keys or len(set(keys)) != len(keys):
        raise WireError("a node with an empty key, or twice the same")
    return dict(zip(keys, words[1::2], strict=True))
