"""The installed libxensock, by ctypes: what a C program would call, with errno as OSError."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sysconfig
from pathlib import Path
from typing import Any

PREFIX = Path(sysconfig.get_path("platlib"), "xensock")
V1 = 1


class PollFd(ctypes.Structure):
    _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]


def _load() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(PREFIX / "lib" / "libxensock.so.0"), use_errno=True)
    lib.xensock_attach.restype = ctypes.c_void_p
    lib.xensock_reason.restype = ctypes.c_char_p
    for name in ("send", "recv"):
        call = getattr(lib, f"xensock_{name}")
        call.restype = ctypes.c_ssize_t
        call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return lib


LIB = _load()


def checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def packed(address: tuple[str, int]) -> bytes:
    host, port = address
    if ":" in host:
        raw = socket.inet_pton(socket.AF_INET6, host)
        return struct.pack("=H", socket.AF_INET6) + struct.pack("!HI16sI", port, 0, raw, 0)
    raw = socket.inet_aton(host)
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", port, raw)


def unpacked(raw: bytes) -> tuple[str, int]:
    (family,) = struct.unpack_from("=H", raw)
    (port,) = struct.unpack_from("!H", raw, 2)
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port
    return socket.inet_ntoa(raw[4:8]), port


class Attachment:
    def __init__(self, url: str, name: str = "tester", flags: int = 0) -> None:
        self.handle = LIB.xensock_attach(url.encode(), name.encode(), flags)
        if not self.handle:
            checked(-1)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *_: object) -> None:
        LIB.xensock_detach(ctypes.c_void_p(self.handle))

    @property
    def reason(self) -> str | None:
        said = LIB.xensock_reason(ctypes.c_void_p(self.handle))
        return said.decode() if said else None

    def has(self, extension: str) -> bool:
        return bool(LIB.xensock_feature(ctypes.c_void_p(self.handle), extension.encode()))

    def socket(self, domain: int = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> Socket:
        return Socket(checked(LIB.xensock_socket(ctypes.c_void_p(self.handle), domain, kind, 0)))

    def connected(self, address: tuple[str, int]) -> Socket:
        sock = self.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        sock.connect(address)
        return sock


class Socket:
    def __init__(self, number: int) -> None:
        self.number = number

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _address(self, call: Any, address: tuple[str, int]) -> None:
        raw = packed(address)
        checked(call(self.number, raw, len(raw)))

    def connect(self, address: tuple[str, int]) -> None:
        self._address(LIB.xensock_connect, address)

    def bind(self, address: tuple[str, int]) -> None:
        self._address(LIB.xensock_bind, address)

    def listen(self, backlog: int = 8) -> None:
        checked(LIB.xensock_listen(self.number, backlog))

    def _name(self, call: Any, *more: int) -> tuple[int, tuple[str, int] | None]:
        raw, length = ctypes.create_string_buffer(28), ctypes.c_uint(28)
        result = checked(call(self.number, raw, ctypes.byref(length), *more))
        return result, unpacked(raw.raw) if length.value else None

    def accept(self, flags: int = 0) -> tuple[Socket, tuple[str, int] | None]:
        number, address = self._name(LIB.xensock_accept, flags)
        return Socket(number), address

    def getsockname(self) -> tuple[str, int] | None:
        return self._name(LIB.xensock_getsockname)[1]

    def getpeername(self) -> tuple[str, int] | None:
        return self._name(LIB.xensock_getpeername)[1]

    def send(self, data: bytes, flags: int = 0) -> int:
        return checked(LIB.xensock_send(self.number, data, len(data), flags))

    def recv(self, size: int, flags: int = 0) -> bytes:
        room = ctypes.create_string_buffer(size)
        got = checked(LIB.xensock_recv(self.number, room, size, flags))
        return room.raw[:got]

    def rest(self) -> bytes:
        parts = []
        while part := self.recv(1 << 16):
            parts.append(part)
        return b"".join(parts)

    def shutdown(self, how: int) -> None:
        checked(LIB.xensock_shutdown(self.number, how))

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        checked(LIB.xensock_setsockopt(self.number, level, option, value, len(value)))

    def getsockopt(self, level: int, option: int) -> int:
        value, length = ctypes.c_int(), ctypes.c_uint(4)
        call = LIB.xensock_getsockopt
        checked(call(self.number, level, option, ctypes.byref(value), ctypes.byref(length)))
        return value.value

    def poll(self, events: int, timeout: float) -> int:
        entry = PollFd(self.number, events, 0)
        checked(LIB.xensock_poll(ctypes.byref(entry), 1, int(timeout * 1000)))
        found: int = entry.revents
        return found

    def at_mark(self) -> bool:
        return bool(checked(LIB.xensock_sockatmark(self.number)))

    def ready(self, events: int, seconds: float) -> int:
        return self.poll(events, seconds)

    def read_inline(self, on: bool) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, struct.pack("i", on))

    def close(self) -> None:
        checked(LIB.xensock_close(self.number))
