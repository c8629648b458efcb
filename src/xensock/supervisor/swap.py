"""Putting another socket in the place of a guest's socket, when the network it belongs to changes.

Theory of operation: a fresh socket of the other network gets the old one's options, binding and file flags, takes the
same epoll registrations, and is installed over every descriptor of the calling process that names the old socket.
Copies that other processes hold stay the old, unconnected socket: sharing.py connects such a one without a swap, and
binding.py leaves the swap to the moment at which one of them listens.
"""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.supervisor import options

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

O_CLOEXEC = os.O_CLOEXEC
EPOLL_CTL_ADD, EPOLL_CTL_DEL = 1, 2


def replace(
    handle: _core.Handle,
    call: int,
    tid: int,
    old: socket.socket,
    new: socket.socket,
    bound: bool,
    begin: Callable[[socket.socket], None] = lambda sock: None,
) -> None:
    """Swap `old` for `new` in the process of `tid`, which waits in notification `call`. Raises OSError.

    `bound`: the old one has a port of its own (options.is_bound). `begin` connects `new`: once it is at the old one's
    numbers, as another thread may accept that connection and then use the socket, and before its epolls have it, as a
    thread that waits in epoll_wait(2) must not find it hung up.
    """
    options.copy(old, new)
    if bound:
        _bind_like(old, new)
    numbers = dict(_numbers(tid, old))
    with ExitStack() as stack:
        registrations = list(_registrations(handle, tid, old, numbers))
        for epfd, *_ in registrations:
            stack.callback(os.close, epfd)
        for number, cloexec in numbers.items():
            error = -_core.super_addfd(
                handle, call, new.fileno(), number, O_CLOEXEC if cloexec else 0
            )
            if error > 0:
                raise OSError(error, os.strerror(error))
        begin(new)
        for epfd, number, events, data in registrations:
            _carried(epfd, EPOLL_CTL_ADD, new, number, events, data)
            _carried(epfd, EPOLL_CTL_DEL, old, number, events, data)


def _carried(epfd: int, op: int, sock: socket.socket, number: int, events: int, data: int) -> None:
    error = _core.epoll_carry(epfd, op, sock.fileno(), number, events, data)
    if error:
        raise OSError(error, os.strerror(error))


def _bind_like(old: socket.socket, new: socket.socket) -> None:
    """Keep a local port that was chosen before, and an address that both networks have."""
    host, port, *_ = old.getsockname()
    address = Endpoint.from_python((host, port)).unmapped().host
    if not port or not (address.is_unspecified or address.is_loopback):
        return
    try:
        new.bind((host, port))
    except OSError as error:
        if error.errno not in (
            errno.EADDRINUSE,
            errno.EACCES,
        ):  # taken there: the kernel chooses another
            raise


def _numbers(tid: int, sock: socket.socket) -> Iterator[tuple[int, bool]]:
    """Descriptors of the process that name this socket, each with its close-on-exec flag (proc(5), fdinfo)."""
    wanted = f"socket:[{os.fstat(sock.fileno()).st_ino}]"
    for entry in os.scandir(f"/proc/{tid}/fd"):
        try:
            if os.readlink(entry.path) != wanted:
                continue
            flags = _field(Path(f"/proc/{tid}/fdinfo/{entry.name}").read_text(), "flags:")
        except FileNotFoundError:
            continue  # closed meanwhile
        yield int(entry.name), bool(int(flags, 8) & O_CLOEXEC)


def _field(text: str, name: str) -> str:
    return next(line.split()[1] for line in text.splitlines() if line.startswith(name))


def _registrations(
    handle: _core.Handle, tid: int, sock: socket.socket, numbers: dict[int, bool]
) -> Iterator[tuple[int, int, int, int]]:
    """Epoll entries of the socket: (epoll descriptor of ours, number, events, data)."""
    inode = f"{os.fstat(sock.fileno()).st_ino:x}"
    for efd in _epolls(tid):
        # Reading fdinfo of a large epoll is slow, so the kernel is asked first (kcmp(2)).
        if all(_core.epoll_watches(tid, efd, number) == 0 for number in numbers):
            continue
        for line in Path(f"/proc/{tid}/fdinfo/{efd}").read_text().splitlines():
            parts = line.replace(":", " ").split()
            if parts[:1] != ["tfd"]:
                continue
            entry = dict(zip(parts[::2], parts[1::2], strict=False))
            if int(entry["tfd"]) in numbers and entry.get("ino", inode) == inode:
                ours = _core.super_getfd(handle, tid, efd)
                yield ours, int(entry["tfd"]), int(entry["events"], 16), int(entry["data"], 16)


def _epolls(tid: int) -> Iterator[int]:
    for entry in os.scandir(f"/proc/{tid}/fd"):
        try:
            if os.readlink(entry.path) == "anon_inode:[eventpoll]":
                yield int(entry.name)
        except FileNotFoundError:
            continue
