"""Responses of the command ring: 24 bytes of v1, and what extensions put behind them.

`req_id` u32 @0, `cmd` u32 @4 (both of the request), `ret` i32 @8, padding, `id` u64 @16. Extensions
use the slot's other 40 bytes: `len` u32 @24 and an address or an option's value @28.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from .errors import WireError
from .requests import ADDRESS, OPTION, SLOT

_HEAD = struct.Struct("<IIi4xQ")
_LENGTH = struct.Struct("<I")
BODY = SLOT - _HEAD.size
"""Bytes of the slot that v1 does not use."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; `ret` is 0 or a negated Linux error number (wire.errors), `id` the request's.

    `body` are the slot's bytes from @24 on, always 40: zero in v1.
    """

    req_id: int
    cmd: int
    ret: int
    id: int
    body: bytes = bytes(BODY)

    def __post_init__(self) -> None:
        if len(self.body) > BODY:
            raise WireError(f"a response has room for {BODY} bytes, not {len(self.body)}")
        object.__setattr__(self, "body", bytes(self.body).ljust(BODY, b"\0"))

    def encode(self) -> bytes:
        """The 64 bytes. Raises WireError for a number out of range."""
        try:
            return _HEAD.pack(self.req_id, self.cmd, self.ret, self.id) + self.body
        except struct.error as why:
            raise WireError(f"{self!r}: {why}") from why

    @classmethod
    def decode(cls, slot: bytes) -> Response:
        """Read 64 bytes. Raises WireError when there are more or fewer."""
        if len(slot) != SLOT:
            raise WireError(f"a response has {SLOT} bytes, not {len(slot)}")
        req_id, cmd, ret, id = _HEAD.unpack_from(slot)
        return cls(req_id, cmd, ret, id, slot[_HEAD.size :])

    @property
    def length(self) -> int:
        """`len` u32 @24: bytes of the address or of the option's value, also of one in a page."""
        length: int = _LENGTH.unpack_from(self.body)[0]
        return length

    def with_length(self, length: int) -> Response:
        """This response for an option whose value, `length` bytes, is in the granted page."""
        return replace(self, body=_LENGTH.pack(length))

    @property
    def address(self) -> bytes:
        """Extension names: a struct sockaddr, or nothing. Raises WireError for a false length."""
        return self._part("address", ADDRESS)

    def with_address(self, address: bytes) -> Response:
        """This response with a struct sockaddr of at most 28 bytes."""
        return self._with("address", address, ADDRESS)

    @property
    def value(self) -> bytes:
        """Extension options: the value. Raises WireError for a false length."""
        return self._part("value", OPTION)

    def with_value(self, value: bytes) -> Response:
        """This response with an option's value of at most 36 bytes."""
        return self._with("value", value, OPTION)

    def _part(self, what: str, room: int) -> bytes:
        length = self.length
        if length > room:
            raise WireError(f"{what} of {length} bytes in a response with room for {room}")
        return self.body[_LENGTH.size : _LENGTH.size + length]

    def _with(self, what: str, data: bytes, room: int) -> Response:
        if len(data) > room:
            raise WireError(f"{what} of {len(data)} bytes, a response has room for {room}")
        return replace(self, body=_LENGTH.pack(len(data)) + data)
