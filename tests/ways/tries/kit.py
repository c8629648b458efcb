"""What every attempt in a guest uses: a name for each, and what came of it as a word."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
TRIES: dict[str, Callable[[], object]] = {}
SITE = json.loads(os.environ["WAYS"])
PATIENCE = 3.0


def attempt(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Register a try: it does what it does, or raises OSError."""

    def register(call: Callable[[], object]) -> Callable[[], object]:
        assert name not in TRIES, name
        TRIES[name] = call
        return call

    return register


def tried(call: Callable[[], object]) -> str:
    """ "done", or the errno's name."""
    try:
        call()
    except TimeoutError:
        return "silence"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    return "done"


def system(number: int, *arguments: object) -> int:
    """A system call by its number. Raises OSError."""
    result = libc.syscall(
        number, *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def stream(family: int = socket.AF_INET) -> socket.socket:
    made = socket.socket(family)
    made.settimeout(PATIENCE)
    return made


def sockaddr4(host: str, port: int, zero: bytes = b"") -> bytes:
    return (
        struct.pack("=H", socket.AF_INET)
        + struct.pack("!H", port)
        + socket.inet_aton(host)
        + zero.ljust(8, b"\0")
    )


def sockaddr6(host: str, port: int, scope: int = 0) -> bytes:
    packed = socket.inet_pton(socket.AF_INET6, host)
    return (
        struct.pack("=H", socket.AF_INET6)
        + struct.pack("!HI", port, 0)
        + packed
        + struct.pack("=I", scope)
    )


def connect_raw(sock: socket.socket, address: bytes) -> None:
    """connect(2) with these very bytes; blocking. Raises OSError."""
    sock.setblocking(True)
    if libc.connect(sock.fileno(), address, len(address)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Ring:
    """An io_uring (io_uring_setup(2)) for one call after the other. Raises OSError."""

    SETUP, ENTER, ENTRIES, PLACE_OF_CALLS = 425, 426, 4, 0x10000000
    SENDMSG, CONNECT, SOCKET = 9, 16, 45

    def __init__(self) -> None:
        room = ctypes.create_string_buffer(120)
        self.fd = system(self.SETUP, self.ENTRIES, room)
        entries, completions = struct.unpack_from("=II", room.raw)
        self._tail, _, _, _, _, self._array = struct.unpack_from("=6I", room.raw, 44)
        self._answers = struct.unpack_from("=I", room.raw, 100)[0]
        size = max(self._array + 4 * entries, self._answers + 16 * completions)
        self._rings = mmap.mmap(self.fd, size)
        self._calls = mmap.mmap(self.fd, 64 * entries, offset=self.PLACE_OF_CALLS)
        self._count = 0

    def __call__(self, code: int, fd: int, off: int, addr: int, size: int) -> int:
        """Have the kernel carry it out, and wait for that."""
        slot = self._count % self.ENTRIES
        self._calls[64 * slot : 64 * (slot + 1)] = struct.pack(
            "=BBHiQQIIQ24x", code, 0, 0, fd, off, addr, size, 0, 0
        )
        struct.pack_into("=I", self._rings, self._array + 4 * slot, slot)
        struct.pack_into("=I", self._rings, self._tail, self._count + 1)
        system(self.ENTER, self.fd, 1, 1, 1, None, 0)
        place = self._answers + 16 * (self._count % (2 * self.ENTRIES))
        self._count += 1
        result: int = struct.unpack_from("=i", self._rings, place + 8)[0]
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result


def main() -> None:
    wanted = sys.argv[1:]
    print(
        json.dumps(
            {name: tried(call) for name, call in TRIES.items() if not wanted or name in wanted}
        )
    )
