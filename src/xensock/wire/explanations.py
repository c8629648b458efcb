"""Extension explain: why a backend allowed or refused something, as bytes in a page or before a DNS answer.

Layout (docs/reference/extensions.md): `flags` u32 @0, `error` i32 @4, the lengths of rule, hint and name
u32 @8, @12, @16, then these three, UTF-8, one behind the other.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from .errors import WireError

_HEAD = struct.Struct("<IiIII")
_ALLOWED, _OWN = 1, 2
LONGEST = 1024
"""Bytes of a rule, hint or name; more is cut."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What was decided and by which rule.

    own     the guest meets itself: nothing was decided
    error   of a refusal, negated as in responses; 0 for what is allowed, and for a refused name
    rule    text of the rule or default; hint: the rule that would allow what was refused
    name    the name by which the rule matched, "" where it was none
    """

    allowed: bool
    own: bool = False
    error: int = 0
    rule: str = ""
    hint: str = ""
    name: str = ""

    def encode(self) -> bytes:
        """The bytes. Raises WireError for an error out of range."""
        texts = [_cut(text) for text in (self.rule, self.hint, self.name)]
        flags = self.allowed * _ALLOWED | self.own * _OWN
        try:
            return _HEAD.pack(flags, self.error, *map(len, texts)) + b"".join(texts)
        except struct.error as why:
            raise WireError(f"{self!r}: {why}") from why

    @classmethod
    def decode(cls, raw: bytes) -> tuple[Explanation, bytes]:
        """An explanation and the bytes behind it. Raises WireError."""
        if len(raw) < _HEAD.size:
            raise WireError(f"an explanation has at least {_HEAD.size} bytes, not {len(raw)}")
        flags, error, *lengths = _HEAD.unpack_from(raw)
        if max(lengths) > LONGEST or _HEAD.size + sum(lengths) > len(raw):
            raise WireError(f"an explanation with texts of {lengths} bytes, {len(raw)} in all")
        at, texts = _HEAD.size, []
        for length in lengths:
            try:
                texts.append(raw[at : at + length].decode())
            except UnicodeDecodeError as why:
                raise WireError("an explanation that is no UTF-8") from why
            at += length
        found = cls(bool(flags & _ALLOWED), bool(flags & _OWN), error, *texts)
        return found, raw[at:]


def _cut(text: str) -> bytes:
    raw = text.encode(errors="replace")
    return raw if len(raw) <= LONGEST else raw[:LONGEST].decode(errors="ignore").encode()
