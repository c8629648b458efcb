"""A small assembler for classic BPF as seccomp(2) runs it, with labels.

An instruction is ``struct sock_filter`` {u16 code, u8 jt, u8 jf, u32 k} (linux/filter.h); the data it reads is
``struct seccomp_data`` {int nr, u32 arch, u64 ip, u64 args[6]}.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

LD_W_ABS = 0x20
LD_IMM = 0x00
JA = 0x05
JEQ = 0x15
JGT = 0x25
JGE = 0x35
JSET = 0x45
RET = 0x06
AND_K = 0x54
RSH_X = 0x7C
TAX = 0x07

NR = 0
ARCH = 4


def arg(index: int) -> int:
    """Offset of the low half of argument ``index``; the kernel takes ints of it (little-endian machines)."""
    return 16 + 8 * index


@dataclass(frozen=True, slots=True)
class _Jump:
    code: int
    k: int
    yes: str
    no: str


@dataclass(frozen=True, slots=True)
class _Plain:
    code: int
    k: int


class Assembler:
    """Collects instructions; an empty label name means "the next instruction"."""

    def __init__(self) -> None:
        self._code: list[_Jump | _Plain | str] = []

    def label(self, name: str) -> None:
        self._code.append(name)

    def load(self, offset: int) -> None:
        self._code.append(_Plain(LD_W_ABS, offset))

    def op(self, code: int, k: int = 0) -> None:
        self._code.append(_Plain(code, k))

    def ret(self, value: int) -> None:
        self._code.append(_Plain(RET, value))

    def jump(self, code: int, k: int, yes: str = "", no: str = "") -> None:
        self._code.append(_Jump(code, k & 0xFFFFFFFF, yes, no))

    def goto(self, name: str) -> None:
        self._code.append(_Jump(JA, 0, name, name))

    def assemble(self) -> bytes:
        """The program as bytes. Raises ValueError for an unknown label or a jump that is too far (255)."""
        labels: dict[str, int] = {}
        lines: list[_Jump | _Plain] = []
        for item in self._code:
            if isinstance(item, str):
                labels[item] = len(lines)
            else:
                lines.append(item)
        out = bytearray()
        for at, line in enumerate(lines):
            if isinstance(line, _Plain):
                out += struct.pack("=HBBI", line.code, 0, 0, line.k)
                continue
            yes, no = (self._distance(labels, name, at) for name in (line.yes, line.no))
            if line.code == JA:
                out += struct.pack("=HBBI", JA, 0, 0, yes)
            else:
                if max(yes, no) > 255:
                    raise ValueError(f"jump from {at} is too far")
                out += struct.pack("=HBBI", line.code, yes, no, line.k)
        return bytes(out)

    @staticmethod
    def _distance(labels: dict[str, int], name: str, at: int) -> int:
        if not name:
            return 0
        if name not in labels or labels[name] <= at:
            raise ValueError(f"no label {name!r} ahead of {at}")
        return labels[name] - at - 1
