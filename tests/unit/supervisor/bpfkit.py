"""Classic BPF run in Python as seccomp(2) runs it, so that a filter can be asked about any call."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ARCH = 0xC000003E  # x86_64; filters are asked with the machine's own where it matters


def verdict(program: bytes, number: int, arguments: Sequence[int] = (), arch: int = ARCH) -> int:
    """What the filter returns for a system call."""
    args = [argument & 0xFFFFFFFFFFFFFFFF for argument in arguments]
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *args, *[0] * (6 - len(args)))
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = index = 0
    for _ in range(len(code) + 1):
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif op == 0x00:
            accumulator = k
        elif op == 0x05:
            at += k
        elif op in (0x15, 0x25, 0x35, 0x45):
            true = {
                0x15: accumulator == k,
                0x25: accumulator > k,
                0x35: accumulator >= k,
                0x45: bool(accumulator & k),
            }[op]
            at += yes if true else no
        elif op == 0x54:
            accumulator &= k
        elif op == 0x07:
            index = accumulator
        elif op == 0x7C:
            accumulator >>= index
        elif op == 0x06:
            return int(k)
        else:
            raise AssertionError(f"instruction {op:#x}")
    raise AssertionError("no end")
