"""A look at a guest from outside: its processes and the sockets they hold, and the end of either by force.

Nothing is kept for this while nobody looks: the kernel tells by proc(5) who holds which socket, and by sock_diag(7)
what becomes of it, in the host's network for the sockets of the direct data path, in the guest's for all others.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock.supervisor import tcpinfo
from xensock.supervisor.connecting import is_own
from xensock.supervisor.diag import NETLINK_SOCK_DIAG
from xensock.supervisor.supervisor import program_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.calls.record import Path
    from xensock.supervisor.guest import Guest
    from xensock.supervisor.supervisor import Parts
    from xensock.supervisor.tcpinfo import Seen

KILL_S = 2.0
_SYS_PIDFD_GETFD = 438
_NOBODY = struct.pack("=H14x", socket.AF_UNSPEC)


@dataclass(frozen=True, slots=True)
class Holder:
    """A descriptor of a process of the guest; `pid` as the host sees it."""

    pid: int
    fd: int


@dataclass(frozen=True, slots=True)
class Socket:
    """A socket that a guest holds. `seen` is what the kernel says, `program` who has it, as the guest calls itself."""

    seen: Seen
    protocol: str
    datapath: Path
    name: str | None
    holder: Holder
    program: str


def processes(guest: Guest) -> list[int]:
    """The guest's processes, by their numbers on the host."""
    inside = _namespace("1/ns/pid", guest.proc)
    if not inside:
        return []
    numbers = (name for name in os.listdir("/proc") if name.isdigit())
    return sorted(int(n) for n in numbers if _namespace(f"/proc/{n}/ns/pid") == inside)


def _namespace(path: str, directory: int | None = None) -> str:
    try:
        return os.readlink(path, dir_fd=directory)
    except OSError:
        return ""


def _held(pids: list[int]) -> dict[int, Holder]:
    """Who holds which socket, by inode."""
    found: dict[int, Holder] = {}
    for pid in pids:
        with suppress(OSError):  # it has ended
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError, ValueError):
                    link = os.readlink(f"/proc/{pid}/fd/{name}")
                    if link.startswith("socket:["):
                        found.setdefault(int(link[8:-1]), Holder(pid, int(name)))
    return found


def sockets(parts: Parts) -> Iterator[Socket]:
    """The Internet sockets that processes of the guest hold. Raises OSError."""
    held = _held(processes(parts.guest))
    programs: dict[int, str] = {}
    moved: Path = "relay" if parts.stacks.default.local else "ring"
    for seen, protocol, host in _all(parts.guest):
        holder = held.get(seen.inode)
        if holder is None or not seen.inode:
            continue
        path: Path = "direct" if host else moved
        remote = seen.end(seen.remote)
        if not host and seen.remote[1] and is_own(remote.host):
            path = "guest"
        name = next(iter(parts.names_of(remote.host)), None) if seen.remote[1] else None
        program = programs.setdefault(holder.pid, program_of(holder.pid))
        yield Socket(seen, protocol, path, name, holder, program)


def _all(guest: Guest) -> Iterator[tuple[Seen, str, bool]]:
    """Sockets of the host's network (True) and of the guest's."""
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with closing(socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG)) as link:
        yield from ((seen, "tcp", True) for seen in tcpinfo.dump(link))
    with closing(guest.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG)) as link:
        yield from ((seen, "tcp", False) for seen in tcpinfo.dump(link))
        with suppress(OSError):  # a kernel without udp_diag
            yield from ((seen, "udp", False) for seen in tcpinfo.dump(link, socket.IPPROTO_UDP))


def reset(found: Socket) -> None:
    """End a guest's connection: the other end gets a reset, and so does the guest. A listener stops listening. By one
    of UDP nothing comes or goes any more: who receives gets nothing at once, who sends to an address EPIPE.

    Raises OSError: ENOENT where the socket is gone, EPERM where we may not (pidfd_getfd(2)).
    """
    fd = _duplicate(found.holder)
    with socket.socket(fileno=fd) as sock:
        if os.fstat(fd).st_ino != found.seen.inode:
            raise OSError(errno.ENOENT, "the socket was closed meanwhile")
        if found.protocol == "udp":
            with suppress(OSError):  # without a peer it says ENOTCONN, and does it all the same
                sock.shutdown(socket.SHUT_RDWR)
        _disconnect(sock)


def _duplicate(holder: Holder) -> int:
    import ctypes

    try:
        pidfd = os.pidfd_open(holder.pid)
    except ProcessLookupError as error:
        raise OSError(errno.ENOENT, "its process has ended") from error
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = int(libc.syscall(_SYS_PIDFD_GETFD, pidfd, holder.fd, 0))
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(errno.ENOENT if number == errno.EBADF else number, os.strerror(number))
        return fd
    finally:
        os.close(pidfd)


def _disconnect(sock: socket.socket) -> None:
    """connect(2) to AF_UNSPEC resets; where somebody waits in a call on it, kernels of 2023 refuse that."""
    from xensock import _core

    error = _core.connect_start(sock.fileno(), _NOBODY, 0)
    if error == errno.EBUSY:
        sock.shutdown(socket.SHUT_RDWR)
    elif error:
        raise OSError(error, os.strerror(error))


def kill(guest: Guest) -> int:
    """End every process of the guest; how many there were. Raises OSError (EPERM).

    Its first process comes last: it tells how the program ended, and then ends by itself.
    """
    found = left = processes(guest)
    deadline = time.monotonic() + KILL_S
    while len(left) > 1 and time.monotonic() < deadline:
        for pid in left:
            if not _is_first(pid):
                _end(pid)
        time.sleep(0.01)
        left = processes(guest)
    if time.monotonic() >= deadline:
        for pid in left:
            _end(pid)
    return len(found)


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _is_first(pid: int) -> bool:
    """Whether a process is the first one of its PID namespace (proc(5), NSpid)."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return any(line.split()[-1] == "1" for line in status if line.startswith("NSpid:"))
    except OSError:
        return False
