"""Who else in the guest holds a socket: other processes by fork, exec or a message, and messages under way.

No call tells how many descriptors a file has, so they are looked for. A look at every descriptor of every process
would be dear for each connect, so it is left out where the socket was made a moment ago by the process that asks:
then another has it by fork, and only processes that are younger than the socket are looked at.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.supervisor.guest import Guest

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY = 4, 20
REQUEST_DUMP, ERROR, DONE = 0x301, 2, 3
SHOW_RQLEN, RQLEN = 0x10, 4  # linux/unix_diag.h
_HEAD = struct.Struct("=IHHII")
_UNIX = struct.Struct("=BBBBIII")  # struct unix_diag_msg
MOMENT_NS = 50_000_000
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_MOST_KNOWN = 10_000


class Holders:
    """Looks into one guest's processes. Used by one thread."""

    def __init__(self, guest: Guest) -> None:
        self._proc = guest.proc
        self._init = guest.init
        self._level = guest.level
        self._link = guest.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self._started: dict[tuple[str, int], int] = {}

    def close(self) -> None:
        self._link.close()

    def elsewhere(self, tid: int, sock: socket.socket, born: tuple[int, int] | None) -> bool:
        """Whether anybody but the process of `tid` holds this socket of the guest's.

        `born`: the thread that made it, and when (CLOCK_BOOTTIME, ns), if that is known. What a process hands to one
        that runs already, within that moment after it made the socket, is found only while it is under way.
        """
        ours, own = _group(tid, self._level)
        wanted = f"socket:[{os.fstat(sock.fileno()).st_ino}]"
        since = 0
        if (
            born is not None
            and time.clock_gettime_ns(time.CLOCK_BOOTTIME) - born[1] < MOMENT_NS
            and (born[0] == tid or _group(born[0], self._level)[0] == ours)
        ):
            since = born[1] // TICK_NS
        for name, inode in self._processes():
            if name == own or (since and self._start(name, inode) < since):
                continue
            if any(link == wanted for _, link in self._descriptors(name)):
                return True
        return self._under_way()

    def sockets(self) -> set[int]:
        """Inodes of all sockets that processes of the guest hold."""
        return {
            int(link[8:-1])
            for name, _ in self._processes()
            for _, link in self._descriptors(name)
            if link.startswith("socket:[")
        }

    def _processes(self) -> Iterator[tuple[str, int]]:
        """Number in the guest and inode of its directory, which no later process of this number has (proc(5))."""
        with os.scandir(self._proc) as entries:
            for entry in entries:
                if entry.name.isdigit() and entry.name != self._init:
                    yield entry.name, entry.inode()

    def _start(self, name: str, inode: int) -> int:
        """When the process started, in ticks since boot; for ever ago if it is gone."""
        known = self._started.get((name, inode))
        if known is None:
            if len(self._started) > _MOST_KNOWN:
                self._started.clear()
            text = self._read(f"{name}/stat")
            known = int(text.rpartition(")")[2].split()[19]) if text else 0
            self._started[name, inode] = known
        return known

    def _descriptors(self, name: str) -> Iterator[tuple[str, str]]:
        """Number and what it names, of a process's descriptors; none of one that is gone or cannot be looked into."""
        try:
            fd = os.open(f"{name}/fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._proc)
        except OSError:
            return
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    try:
                        yield entry.name, os.readlink(entry.name, dir_fd=fd)
                    except OSError:
                        continue  # closed meanwhile
        except OSError:
            return  # ended meanwhile
        finally:
            os.close(fd)

    def _read(self, path: str) -> str:
        try:
            fd = os.open(path, os.O_RDONLY, dir_fd=self._proc)
        except OSError:
            return ""
        try:
            return os.read(fd, 4096).decode(errors="replace")
        except OSError:
            return ""
        finally:
            os.close(fd)

    def _under_way(self) -> bool:
        """Whether some Unix socket of the guest holds descriptors that nobody has received (unix(7), SCM_RIGHTS)."""
        full = {f"socket:[{inode}]" for inode in self._unread()}
        if not full:
            return False
        return any(
            link in full and _passed(self._read(f"{name}/fdinfo/{number}"))
            for name, _ in self._processes()
            for number, link in self._descriptors(name)
        )

    def _unread(self) -> Iterator[int]:
        """Inodes of Unix sockets in the guest's network with something to read (sock_diag(7))."""
        body = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, SHOW_RQLEN, 0, 0)
        self._link.send(
            _HEAD.pack(_HEAD.size + len(body), SOCK_DIAG_BY_FAMILY, REQUEST_DUMP, 1, 0) + body
        )
        while True:
            data = self._link.recv(1 << 16)
            at = 0
            while at + _HEAD.size <= len(data):
                length, kind, _, _, _ = _HEAD.unpack_from(data, at)
                if kind in (DONE, ERROR):
                    return  # a kernel without unix_diag says so with an error
                inode = _UNIX.unpack_from(data, at + _HEAD.size)[4]
                if _queued(data[at + _HEAD.size + _UNIX.size : at + length]):
                    yield inode
                at += (length + 3) & ~3


def _queued(attributes: bytes) -> int:
    """The receive queue's length among the attributes of a unix_diag message."""
    at = 0
    while at + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, at)
        if kind == RQLEN:
            return int(struct.unpack_from("=I", attributes, at + 4)[0])
        at += max((length + 3) & ~3, 4)
    return 0


def _passed(fdinfo: str) -> bool:
    return any(
        line.startswith("scm_fds:") and line.split()[1] != "0" for line in fdinfo.splitlines()
    )


def _group(tid: int, level: int) -> tuple[str, str]:
    """The process of a thread: its number for us and in the guest; empty if it is gone (proc(5), NStgid)."""
    try:
        with open(f"/proc/{tid}/status") as status:
            for line in status:
                if line.startswith("NStgid:"):
                    numbers = line.split()
                    return numbers[1], numbers[1 + level] if len(numbers) > 1 + level else ""
    except OSError:
        pass
    return "", ""
