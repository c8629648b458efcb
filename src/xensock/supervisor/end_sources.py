"""Where the kernel's word of sockets that end comes from: sock_diag(7)'s multicast, or a program of ours in the kernel.

Everybody may listen to the multicast, but all sockets of the machine pay for it, 4 to 5 µs each. With CAP_BPF and
CAP_NET_ADMIN a program at this process's cgroup (end_program.py) tells the same for less, of the sockets that were made
in it; one is enough for all guests. Each source reads on a thread of its own, until `stop`.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
import sys
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from xensock import _core, cgroups
from xensock.background import give_way
from xensock.supervisor import tcpinfo
from xensock.supervisor.diag import cookie, open_link

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# Messages come by the thousand: fetch several at once. What an ordinary user's socket may hold is soon full.
NAP_S, NAP_OF_RING_S = 0.005, 0.02
AGAIN_S = 0.2
PROOF_S = 0.1
BUFFER = 8 << 20
RING = (
    4 << 20
)  # bytes, of messages of 328: those of half a second, at 25,000 connections in that time
WAITING = (
    RING // 65536
)  # batches of messages (native/ext/endring.c) that one guest may have waiting
SO_RCVBUFFORCE, SO_NETNS_COOKIE = 33, 71  # socket(7); Python does not name them
SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1  # netlink(7), likewise
# capabilities(7); the last one stands for both
BPF, NET_ADMIN, SYS_ADMIN = 1 << 39, 1 << 12, 1 << 21

_log = logging.getLogger(__name__)


class Source(Protocol):
    late: float  # seconds after a socket's end in which it may still be told

    def join(self, families: Iterable[int]) -> None:
        """Be told of sockets of these families, too. Raises OSError."""

    def pump(self) -> None:
        """Have those told of that the kernel has told of already, if that is known."""

    def stop(self) -> None:
        """Read what has come, and end."""


class Multicast:
    """Has `read` take messages from a socket; it says whether some were lost, then `missed` is called once more later,
    since beginnings may be told later than ends that were dropped. Raises OSError where there is no sock_diag."""

    late = 0.1

    def __init__(
        self,
        read: Callable[[socket.socket], bool],
        missed: Callable[[], None],
        families: Iterable[int],
    ) -> None:
        self._read = read
        self._link = open_link()
        try:
            try:
                self._link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            except PermissionError:  # not more than net.core.rmem_max, then
                self._link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            self._link.bind((0, 0))
            self.join(families)
            self._link.setblocking(False)
            self._reader = _Reader(self._link.fileno(), NAP_S, lambda: read(self._link), missed)
        except OSError:
            self._link.close()
            raise

    def join(self, families: Iterable[int]) -> None:
        for family in families:
            self._link.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, tcpinfo.DESTROYED[family])

    def pump(self) -> None:
        pass

    def stop(self) -> None:
        self._reader.stop()
        self._read(self._link)
        self._link.close()


class Program:
    """Has `hear` take messages, one behind the other, and calls `missed` where some were lost. Raises OSError where the
    kernel takes no such program from this process, or calls it for none of its sockets."""

    late = 0.0
    _guard = threading.Lock()
    _shared: _Attached | None = None

    def __init__(self, hear: Callable[[bytes], None], missed: Callable[[], None]) -> None:
        self._hear, self._missed = hear, missed
        self._waiting: deque[bytes] = deque()
        self._lost = False
        self._draining = threading.Lock()
        with Program._guard:
            if Program._shared is None:
                Program._shared = _Attached()
            self._attached = Program._shared
            self._attached.add(self)

    def join(self, families: Iterable[int]) -> None:
        pass

    def pump(self) -> None:
        self._attached.pump()
        self.drain()

    def put(self, messages: bytes, lost: bool) -> None:
        """For the next drain(). One thread at a time."""
        if lost or len(self._waiting) == WAITING:
            self._lost = True
        elif messages:
            self._waiting.append(messages)

    def drain(self) -> None:
        """What one guest's messages lead to, which may take long, or fail, is not the others' to wait for."""
        with self._draining:
            while self._waiting:
                _shielded(partial(self._hear, self._waiting.popleft()))
            lost, self._lost = self._lost, False
            if lost:
                _shielded(self._missed)

    def again(self) -> None:
        """Messages were lost a while ago."""
        _shielded(self._missed)

    def stop(self) -> None:
        with Program._guard:
            if self._attached.remove(self):
                self._attached.close()
                Program._shared = None
        self.drain()


class _Attached:
    """The program where it runs, and who wants its messages."""

    def __init__(self) -> None:
        if not may_attach():
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        from xensock.supervisor import ebpf, end_program

        self._lock = threading.Lock()
        self._takers: list[Program] = []
        self._fds: list[int] = []
        try:
            ring = self._keep(ebpf.ring(RING))
            lost = self._keep(ebpf.array(8))
            self._lost = ebpf.mapped(lost)
            self._losses = 0
            program = self._keep(end_program.load(ring, lost))
            target = os.open(cgroups.own_cgroup(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._keep(ebpf.link(program, target, end_program.CGROUP_SOCK_OPS))
            finally:
                os.close(target)
            self._ring: _core.Endring | None = _core.endring_open(ring, RING)
            self._prove()
            self._reader = _Reader(ring, NAP_OF_RING_S, self._read, self._again)
        except BaseException:
            self._release()
            raise

    def _keep(self, fd: int) -> int:
        self._fds.append(fd)
        return fd

    def _release(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def _prove(self) -> None:
        """That sockets of this process are told of: its cgroup may be another one than it looks."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            sock.listen(1)
            number = cookie(sock)
        deadline = time.monotonic() + PROOF_S
        while (
            time.monotonic() < deadline
        ):  # others' messages may be before it, and not complete yet
            heard = _core.endring_read(self._ring)
            if number in {tcpinfo.cookie_of(message) for message in tcpinfo.split(heard)}:
                return
        raise OSError(errno.ENOENT, "the program is not called for this process's sockets")

    def add(self, taker: Program) -> None:
        with self._lock:
            self._takers.append(taker)

    def remove(self, taker: Program) -> bool:
        """Once it has what came; whether it was the last one."""
        with self._lock:
            self._hand_out()
            self._takers.remove(taker)
            return not self._takers

    def close(self) -> None:
        self._reader.stop()
        with self._lock:
            self._ring = None  # and so its memory
            self._lost.close()
        self._release()

    def pump(self) -> bool:
        """Hand out what is there; whether messages were lost."""
        with self._lock:
            return self._hand_out()

    def _hand_out(self) -> bool:
        if self._ring is None:
            return False
        for _ in range(WAITING):  # others may write faster than this reads
            messages = _core.endring_read(self._ring)
            if not messages:
                break
            for taker in self._takers:
                taker.put(messages, False)
        losses: int = struct.unpack_from("=Q", self._lost)[0]
        lost, self._losses = losses != self._losses, losses
        if lost:
            for taker in self._takers:
                taker.put(b"", True)
        return lost

    def _read(self) -> bool:
        lost = self.pump()
        for taker in self._all():
            taker.drain()
        return lost

    def _again(self) -> None:
        for taker in self._all():
            taker.again()

    def _all(self) -> list[Program]:
        with self._lock:
            return list(self._takers)


class _Reader:
    """A thread that calls `read` while there is something, with a nap after it, and `missed` some time after it said
    that some was lost."""

    def __init__(
        self, fd: int, nap: float, read: Callable[[], bool], missed: Callable[[], None]
    ) -> None:
        self._nap, self._read, self._missed = nap, read, missed
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._ended, self._poll = select.poll(), select.poll()
        self._poll.register(fd, select.POLLIN)
        for poll in (self._ended, self._poll):
            poll.register(self._stop, select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="xs-endings", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)

    def _run(self) -> None:
        give_way()
        again = None  # when to look once more
        while True:
            rest = None if again is None else max(0.0, again - time.monotonic()) * 1000
            self._poll.poll(rest)
            if self._ended.poll(0):
                return
            if _shielded(self._read):
                again = time.monotonic() + AGAIN_S
            elif again is not None and time.monotonic() >= again:
                again = None
                _shielded(self._missed)
            if self._ended.poll(self._nap * 1000):
                return


def _shielded(act: Callable[[], bool | None]) -> bool | None:
    """A fault of one guest, or a passing one (descriptors ran out), is shown, and others' ends are told as ever."""
    try:
        return act()
    except Exception:
        _log.exception("ends of connections are not told")
        return None


def netns_cookie() -> int:
    """The SO_NETNS_COOKIE of this network namespace, 0 where the kernel has none (before Linux 5.14)."""
    with socket.socket() as sock:
        try:
            found = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            return 0
    return int.from_bytes(found, sys.byteorder)


def may_attach(proc: Path = Path("/proc/self")) -> bool:
    """Whether this process has the capabilities for programs at its cgroup, as far as it knows: in a user namespace
    they are not those that the kernel asks for."""
    status = (proc / "status").read_text(errors="surrogateescape")
    (text,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    effective = int(text, 16)
    return bool(effective & SYS_ADMIN) or effective & (BPF | NET_ADMIN) == BPF | NET_ADMIN
