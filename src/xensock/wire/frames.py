"""Datagrams in a data ring (extension datagrams): each is a frame, and indices move by whole frames.

`len` u32 @0, `flags` u32 @4, `addr_len` u32 @8, the address 28 bytes @12, the payload @40, zeros up
to a multiple of 8. A frame may wrap at the ring's end as any bytes do.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

from .errors import WireError
from .packet_info import SIZE as INFO_SIZE
from .packet_info import PacketInfo
from .requests import ADDRESS

_HEAD = struct.Struct("<III28s")
_ERROR = struct.Struct("<i")
_ICMP = struct.Struct("<BBHI16s")
HEADER = _HEAD.size
ALIGN = 8


class FrameFlag(IntFlag):
    """Bits of `flags`; others are ignored."""

    TRUNCATED = 1
    """The payload is the beginning of a longer datagram."""
    ERROR = 2
    """The payload is an i32: a negated Linux error number, as ICMP reports one."""
    ICMP = 4
    """With ERROR: behind the number follows what the ICMP message said."""
    INFO = 8
    """Extension packet-info: the payload begins with what IP says beside it."""


@dataclass(frozen=True, slots=True)
class Icmp:
    """What an ICMP message said of a datagram that did not arrive (RFC 792, RFC 4443).

    info    the MTU of "fragmentation needed" and "packet too big", else 0
    sender  who sent the message: 16 bytes, IPv4 mapped
    quote   the beginning of the datagram's payload
    """

    type: int
    code: int
    info: int
    sender: bytes
    quote: bytes = b""

    def encode(self) -> bytes:
        """As it stands behind the error number."""
        return _ICMP.pack(self.type, self.code, 0, self.info, self.sender) + self.quote

    @classmethod
    def decode(cls, raw: bytes) -> Icmp:
        """The message behind the error number. Raises WireError when it is not whole."""
        if len(raw) < _ICMP.size:
            raise WireError(f"an ICMP message of {len(raw)} bytes in a frame")
        kind, code, _, info, sender = _ICMP.unpack_from(raw)
        return cls(kind, code, info, sender, raw[_ICMP.size :])


@dataclass(frozen=True, slots=True)
class Frame:
    """A datagram and its address: where it goes (`out`) or comes from (`in`); empty: the peer.

    With `error`, a negated Linux number, it reports a failure instead and has no payload; with `icmp` too, one that
    the network told. `info` needs the extension packet-info.
    """

    payload: bytes
    address: bytes = b""
    truncated: bool = False
    error: int = 0
    icmp: Icmp | None = None
    info: PacketInfo | None = None

    def encode(self) -> bytes:
        """The frame's bytes. Raises WireError for an address longer than 28 bytes."""
        if len(self.address) > ADDRESS:
            raise WireError(f"address of {len(self.address)} bytes in a frame")
        flags = FrameFlag.TRUNCATED if self.truncated else FrameFlag(0)
        payload = self.payload
        if self.info is not None:
            flags |= FrameFlag.INFO
            payload = self.info.encode() + payload
        if self.error:
            if payload:
                raise WireError("a frame that reports an error has no payload")
            flags |= FrameFlag.ERROR
            try:
                payload = _ERROR.pack(self.error)
            except struct.error as why:
                raise WireError(f"error {self.error} in a frame") from why
            if self.icmp is not None:
                flags |= FrameFlag.ICMP
                payload += self.icmp.encode()
        head = _HEAD.pack(len(payload), flags, len(self.address), self.address)
        return (head + payload).ljust(frame_size(len(payload)), b"\0")


def frame_size(length: int) -> int:
    """Bytes in the ring of a frame with a payload of `length` bytes."""
    return HEADER + length + (-length) % ALIGN


def largest_payload(size: int) -> int:
    """The longest payload that a ring with `size` bytes in a direction carries."""
    return size - HEADER


def next_frame(head: bytes) -> int:
    """The size of the frame that begins with these 40 bytes. Raises WireError for fewer."""
    if len(head) < HEADER:
        raise WireError(f"a frame has a header of {HEADER} bytes, here are {len(head)}")
    return frame_size(_HEAD.unpack_from(head)[0])


def decode_frame(raw: bytes, informed: bool = False) -> tuple[Frame, int]:
    """The frame at the start of `raw`, and its size; `informed`: packet-info was agreed on. Raises WireError when it is
    not whole."""
    size = next_frame(raw)
    length, flags, addr_len, addr = _HEAD.unpack_from(raw)
    if size > len(raw):
        raise WireError(f"a frame of {size} bytes in {len(raw)}")
    if addr_len > ADDRESS:
        raise WireError(f"address of {addr_len} bytes in a frame")
    address, truncated = addr[:addr_len], bool(flags & FrameFlag.TRUNCATED)
    if not flags & FrameFlag.ERROR:
        payload = bytes(raw[HEADER : HEADER + length])
        if not informed or not flags & FrameFlag.INFO:
            return Frame(payload, address, truncated), size
        info = PacketInfo.decode(payload)
        return Frame(payload[INFO_SIZE:], address, truncated, info=info), size
    told = bool(flags & FrameFlag.ICMP)
    if length < _ERROR.size or (length > _ERROR.size and not told):
        raise WireError(f"an error of {length} bytes in a frame")
    error: int = _ERROR.unpack_from(raw, HEADER)[0]
    if error >= 0:
        raise WireError(f"error {error} in a frame is not negative")
    icmp = Icmp.decode(bytes(raw[HEADER + _ERROR.size : HEADER + length])) if told else None
    return Frame(b"", address, truncated, error, icmp), size
