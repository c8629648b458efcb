"""The few things about DNS messages (RFC 1035) that are done on bytes: to forward them unchanged.

Whole messages are read by dnspython; here are only the fixed header, the one question, and the
answers that we make ourselves.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER: Final = 12
QR: Final = 0x8000
OPCODE: Final = 0x7800
AA: Final = 0x0400
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
CD: Final = 0x0010

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5

A: Final = 1
CNAME: Final = 5
PTR: Final = 12
AAAA: Final = 28
IN: Final = 1

_QUESTION_NAME = b"\xc0\x0c"  # a compression pointer to offset 12
_UNUSUAL = b'"().;\\@$'
_OPT = b"\0" + struct.pack("!HHIH", 41, 4096, 0, 0)


class WireError(ValueError):
    """Bytes that are not a DNS message with exactly one question."""


@dataclass(frozen=True, slots=True)
class Question:
    """The one question of a message.

    labels   the name's labels, lower-case (ASCII), without the root
    name     the same as text, with anything unusual as \\DDD (RFC 1035, 5.1); a dot in a label too,
             so that a suffix of the text is always a suffix of the name
    end      offset of the first byte after the question
    """

    labels: tuple[bytes, ...]
    name: str
    type: int
    cls: int
    end: int


def read_question(wire: bytes) -> Question:
    """Read the question of a query or reply. Raises WireError."""
    if len(wire) < HEADER or wire[4:6] != b"\0\1":
        raise WireError("not exactly one question")
    labels: list[bytes] = []
    at = HEADER
    while True:
        if at >= len(wire):
            raise WireError("the name ends early")
        length = wire[at]
        at += 1
        if length == 0:
            break
        # Nothing precedes the first name, so that a compression pointer in it is an attack.
        if length > 63 or at + length > len(wire) or at + length - HEADER > 254:
            raise WireError("bad label")
        labels.append(wire[at : at + length].lower())
        at += length
    if at + 4 > len(wire):
        raise WireError("the question ends early")
    kind, cls = struct.unpack_from("!HH", wire, at)
    text = ".".join(map(_escaped, labels)) or "."
    return Question(tuple(labels), text, kind, cls, at + 4)


def _escaped(label: bytes) -> str:
    return "".join(
        chr(byte) if 0x20 < byte < 0x7F and byte not in _UNUSUAL else f"\\{byte:03d}"
        for byte in label
    )


def head(wire: bytes) -> tuple[int, int]:
    """Identifier and flags."""
    identifier, flags = struct.unpack_from("!HH", wire)
    return identifier, flags


def with_id(wire: bytes, identifier: int) -> bytes:
    """The same message under another identifier."""
    return identifier.to_bytes(2, "big") + wire[2:]


def rcode(wire: bytes) -> int:
    """The four bits of the response code that the header holds."""
    return wire[3] & 0x0F


def reply(
    query: bytes,
    question: Question | None,
    code: int,
    records: Sequence[tuple[int, bytes]] = (),
    *,
    ttl: int = 0,
    flags: int = 0,
) -> bytes:
    """Answer `query` ourselves. `records` are (type, data) pairs owned by the question's name;
    without a question (it could not be read) only the header is sent. `ttl` in seconds.

    A query with EDNS gets an answer with EDNS (RFC 6891, 6.1.1)."""
    identifier, asked = head(query)
    bits = QR | RA | asked & (OPCODE | RD | CD) | flags | code
    # In a query nothing but OPT, owned by the root, comes first after the question.
    edns = question is not None and query[question.end : question.end + 3] == b"\0\0\x29"
    counts = (1 if question else 0, len(records), 0, int(edns))
    parts = [struct.pack("!6H", identifier, bits, *counts)]
    if question is not None:
        parts.append(query[HEADER : question.end])
    for kind, data in records:
        parts.append(_QUESTION_NAME + struct.pack("!HHIH", kind, IN, ttl, len(data)) + data)
    if edns:
        parts.append(_OPT)
    return b"".join(parts)


def encode_name(name: str) -> bytes:
    """A host name in wire form. Raises WireError where it is not one that DNS can carry."""
    out = bytearray()
    for label in name.removesuffix(".").split("."):
        try:
            raw = label.encode("ascii")
        except UnicodeEncodeError as error:
            raise WireError(f"{name!r} is not ASCII") from error
        if not 0 < len(raw) <= 63:
            raise WireError(f"{name!r} has a label of {len(raw)} bytes")
        out.append(len(raw))
        out += raw
    if len(out) > 254:
        raise WireError(f"{name!r} is too long")
    return bytes(out) + b"\0"


def reverse_address(labels: Sequence[bytes]) -> IPv4Address | IPv6Address | None:
    """The address that a name under in-addr.arpa or ip6.arpa stands for (RFC 1035, RFC 3596)."""
    labels = tuple(labels)
    try:
        if len(labels) == 6 and labels[4:] == (b"in-addr", b"arpa"):
            return IPv4Address(".".join(label.decode("ascii") for label in reversed(labels[:4])))
        if len(labels) == 34 and labels[32:] == (b"ip6", b"arpa"):
            if any(len(label) != 1 for label in labels[:32]):
                return None
            return IPv6Address(int(b"".join(reversed(labels[:32])), 16))
    except ValueError:  # UnicodeDecodeError and AddressValueError too
        return None
    return None
