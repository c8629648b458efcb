"""Programs for the kernel to run, put together here: bpf(2), and the instruction set of RFC 9669.

What is used needs Linux 5.8 (ring buffers, links that end with their descriptor) and CAP_BPF with CAP_NET_ADMIN.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct

MAP_CREATE, PROG_LOAD, LINK_CREATE = 0, 5, 28  # enum bpf_cmd
MAP_TYPE_ARRAY, MAP_TYPE_RINGBUF = 2, 27
F_MMAPABLE = 1 << 10
SYS_BPF = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "s390x": 351,
    "ppc64le": 361,
}
PSEUDO_MAP_FD, PSEUDO_MAP_VALUE = 1, 2  # what a wide constant stands for
R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)

_INSTRUCTION = struct.Struct("=BBhi")
_SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_LDX, _ST, _STX, _JMP, _ALU64 = 0x61, 0x62, 0x63, 0x05, 0x07
_libc = ctypes.CDLL(None, use_errno=True)


def call(command: int, attributes: bytes) -> int:
    """bpf(2): a descriptor, which a new program does not inherit. Raises OSError."""
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(38, f"bpf(2) has no known number on {platform.machine()}")  # ENOSYS
    held = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    found: int = _libc.syscall(ctypes.c_long(number), command, held, len(held))
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return found


class Code:
    """Instructions, one after the other. A size is of bytes: 4 or 8, to store also 1 and 2."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._labels: dict[str, int] = {}
        self._jumps: dict[int, str] = {}

    def _add(self, code: int, to: int = 0, of: int = 0, offset: int = 0, value: int = 0) -> None:
        self._lines.append(_INSTRUCTION.pack(code, of << 4 | to, offset, value))

    def load(self, size: int, to: int, of: int, offset: int) -> None:
        """to = what is at of + offset."""
        self._add(_LDX | _SIZES[size], to, of, offset)

    def store(self, size: int, to: int, offset: int, of: int) -> None:
        """What is at to + offset = of."""
        self._add(_STX | _SIZES[size], to, of, offset)

    def put(self, size: int, to: int, offset: int, value: int) -> None:
        """What is at to + offset = value."""
        self._add(_ST | _SIZES[size], to, 0, offset, value)

    def add_at(self, to: int, of: int) -> None:
        """The 8 bytes at `to` += of, atomically."""
        self._add(0xDB, to, of)

    def set(self, to: int, value: int) -> None:
        self._add(0xB0 | _ALU64, to, 0, 0, value)

    def copy(self, to: int, of: int) -> None:
        self._add(0xB8 | _ALU64, to, of)

    def add(self, to: int, value: int) -> None:
        self._add(0x00 | _ALU64, to, 0, 0, value)

    def add_from(self, to: int, of: int) -> None:
        self._add(0x08 | _ALU64, to, of)

    def subtract32(self, to: int, of: int) -> None:
        """to -= of, in 32 bits; the upper half is 0 then."""
        self._add(0x1C, to, of)

    def either(self, to: int, value: int) -> None:
        """to |= value."""
        self._add(0x40 | _ALU64, to, 0, 0, value)

    def shift_right(self, to: int, bits: int) -> None:
        """to >>= bits."""
        self._add(0x70 | _ALU64, to, 0, 0, bits)

    def both(self, to: int, value: int) -> None:
        """to &= value."""
        self._add(0x50 | _ALU64, to, 0, 0, value)

    def network_order(self, to: int, bits: int) -> None:
        """Of the lowest 16, 32 or 64 bits; the others are 0 then."""
        self._add(0xDC, to, 0, 0, bits)

    def map(self, to: int, fd: int, kind: int = PSEUDO_MAP_FD) -> None:
        """to = a map, or with PSEUDO_MAP_VALUE where its only value is."""
        self._add(0x18, to, kind, 0, fd)
        self._add(0)

    def call(self, function: int) -> None:
        """r0 = a helper's answer (bpf-helpers(7)) to r1 to r5, which are lost."""
        self._add(0x80 | _JMP, value=function)

    def end(self) -> None:
        """Return r0."""
        self._add(0x90 | _JMP)

    def jump(self, label: str) -> None:
        self._jump(0x00, label)

    def if_equal(self, of: int, value: int, label: str) -> None:
        self._jump(0x10, label, of, value)

    def if_other(self, of: int, value: int, label: str) -> None:
        self._jump(0x50, label, of, value)

    def if_set(self, of: int, bits: int, label: str) -> None:
        self._jump(0x40, label, of, bits)

    def _jump(self, condition: int, label: str, of: int = 0, value: int = 0) -> None:
        self._jumps[len(self._lines)] = label
        self._add(condition | _JMP, of, 0, 0, value)

    def label(self, name: str) -> None:
        self._labels[name] = len(self._lines)

    def bytes(self) -> bytes:
        """The program. Raises KeyError for a label that is nowhere."""
        lines = list(self._lines)
        for at, label in self._jumps.items():
            code, registers, _, value = _INSTRUCTION.unpack(lines[at])
            lines[at] = _INSTRUCTION.pack(code, registers, self._labels[label] - at - 1, value)
        return b"".join(lines)


def array(value_size: int) -> int:
    """A map of one value, which can be mapped to memory. Raises OSError."""
    return call(MAP_CREATE, struct.pack("=5I", MAP_TYPE_ARRAY, 4, value_size, 1, F_MMAPABLE))


def mapped(fd: int) -> mmap.mmap:
    """The memory of such a map, to read."""
    return mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)


def ring(size: int) -> int:
    """A ring buffer of so many bytes, a power of two. Raises OSError."""
    return call(MAP_CREATE, struct.pack("=5I", MAP_TYPE_RINGBUF, 0, 0, size, 0))


def load(kind: int, attach: int, name: str, code: bytes) -> int:
    """A program of a kind (enum bpf_prog_type), for a place (enum bpf_attach_type). Raises OSError."""
    held = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    count = len(code) // _INSTRUCTION.size
    head = struct.pack("=IIQQ", kind, count, ctypes.addressof(held), ctypes.addressof(licence))
    return call(
        PROG_LOAD, head + struct.pack("=IIQII16sII", 0, 0, 0, 0, 0, name.encode(), 0, attach)
    )


def link(program: int, target: int, attach: int) -> int:
    """The program runs there until the descriptor is closed. Raises OSError."""
    return call(LINK_CREATE, struct.pack("=IIII", program, target, attach, 0))
