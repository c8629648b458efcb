"""The C core (native/ext). Descriptors are ints; errno results are 0 for success."""

from typing import Any, TypeAlias

from _typeshed import ReadableBuffer as Buffer

SYS: dict[str, int]
AUDIT_ARCH: int

Handle: TypeAlias = Any
Event: TypeAlias = tuple[
    int,
    int,
    int,
    int,
    tuple[int, int, int, int, int, int],
    int,
    int,
    int,
    int,
    bytes,
    int,
    int,
    int,
    int,
]

def connect_start(fd: int, sockaddr: Buffer, wait_us: int, /) -> int: ...
def epoll_carry(epfd: int, op: int, sock: int, number: int, events: int, data: int, /) -> int: ...
def epoll_watches(pid: int, efd: int, tfd: int, /) -> int: ...
def landlock_abi() -> int: ...
def read_memory(pid: int, address: int, length: int, /) -> bytes: ...
def write_memory(pid: int, address: int, data: Buffer, /) -> None: ...
def super_start(notify_fd: int, record: bool, /) -> Handle: ...
def super_stop(handle: Handle, /) -> None: ...
def super_next(handle: Handle, timeout_ms: int, /) -> list[Event] | None: ...
def super_answer(handle: Handle, id: int, value: int, error: int, go_on: bool, /) -> int: ...
def super_valid(handle: Handle, id: int, /) -> bool: ...
def super_addfd(handle: Handle, id: int, srcfd: int, number: int, flags: int, /) -> int: ...
def super_connect(
    handle: Handle,
    id: int,
    tid: int,
    fd: int,
    sockaddr: Buffer,
    verdict: int,
    start_ns: int,
    cache: bool,
    /,
) -> None: ...
def super_await(
    handle: Handle,
    id: int,
    tid: int,
    fd: int,
    sockaddr: Buffer,
    verdict: int,
    start_ns: int,
    cache: bool,
    /,
) -> None: ...
def super_refuse(handle: Handle, sockaddr: Buffer, verdict: int, error: int, /) -> None: ...
def super_flush(handle: Handle, /) -> None: ...
def super_getfd(handle: Handle, tid: int, fd: int, /) -> int: ...
def super_keep(handle: Handle, fd: int, nr: int, error: int, /) -> None: ...
