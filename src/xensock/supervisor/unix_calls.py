"""connect(2) of unix sockets: the guest's own ones are its own, those of the host open to a rule that names them.

The kernel looks a path up for whoever calls, wherever the socket there comes from, and it would look again after a
check. So no such call goes on in the guest: the path is resolved here (unix_paths), whose socket lies there is asked of
the kernel, and the guest's socket is connected to that very file. It runs on a thread for each call, because file
systems and full listeners may keep it waiting.

Who connected is then the backend, for whoever asks by SO_PEERCRED, and so is who listens: that call is carried out
here, too (behalf.h). Within the guest the question is answered with the process that it was (`peer`).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from collections import OrderedDict
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.call import Decision, Verb
from xensock.supervisor import unix_paths
from xensock.supervisor.diag import NETLINK_SOCK_DIAG
from xensock.supervisor.unix_diag import UnixDiag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor
    from xensock.supervisor.unix_paths import Found

MOST_WAITING = 512  # connects of one guest under way; natively a thread each, too
MOST_KNOWN = 16_384
GONE = -1  # there is nobody to answer any more
ROUND_US = 10_000  # between two looks whether the caller is still there
SO_PEERPIDFD = 77
UCRED = struct.Struct("=iII")
OWN = Decision(True, "the guest's own unix socket")


class UnixCalls:
    """The unix sockets of one guest, as far as they leave a process."""

    def __init__(self, sup: Supervisor, beside: UnixCalls | None = None) -> None:
        self._sup = sup
        guest = sup.parts.guest
        link = (socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
        self._inside = UnixDiag(guest.socket(*link))
        self._outside = UnixDiag(socket.socket(*link))
        # Who connected, by the inode of their socket, and who listens, by name; shared by the guest's supervisors.
        self._callers: OrderedDict[int, list[int]] = beside._callers if beside else OrderedDict()
        self._lock: threading.Lock = beside._lock if beside else threading.Lock()
        self._listeners: dict[str | bytes, list[int]] = beside._listeners if beside else {}
        self.handlers: dict[int, Callable[[Supervisor, Question], None]] = {
            _core.SYS["connect"]: self.connect,
            _core.SYS["listen"]: self.listen,
            _core.SYS["getsockopt"]: self.peer,
        }
        self._running: set[threading.Thread] = set()
        self._stopped = False

    def close(self) -> None:
        """End what waits."""
        self._stopped = True
        while True:
            with self._lock:
                thread = next(iter(self._running), None)
            if thread is None:
                break
            thread.join()
        self._inside.close()
        self._outside.close()

    def connect(self, sup: Supervisor, q: Question) -> None:
        """Take the call over; it is answered later."""
        with self._lock:
            crowded = len(self._running) >= MOST_WAITING
        if crowded:
            sup.answer(q, errno.EAGAIN)
            return
        mine = socket.socket(q.sock.family, q.sock.type, 0, fileno=q.sock.detach())
        taken = replace(q, sock=mine)
        thread = threading.Thread(target=self._run, args=(taken,), name="unix", daemon=True)
        with self._lock:
            try:
                thread.start()
            except RuntimeError:  # no more threads for this user (RLIMIT_NPROC, pids.max)
                mine.close()
                sup.answer(q, errno.EAGAIN)
                return
            self._running.add(thread)

    def _run(self, q: Question) -> None:
        try:
            with ExitStack() as stack:
                error = self._connect(q, stack)
            if error != GONE:
                self._sup.answer(q, error)
        except Exception as fault:
            self._sup.parts.complain(f"{fault!r}\n")
            self._sup.answer(q, errno.EPERM)
        finally:
            q.sock.close()
            with self._lock:
                self._running.discard(threading.current_thread())

    def _connect(self, q: Question, stack: ExitStack) -> int:
        path = unix_paths.path_in(q.addr) if q.addr[:2] == b"\1\0" else b""
        if not path:
            # An abstract name is of the socket's own network; AF_UNSPEC and what is none are the kernel's to word.
            return self._to(q, q.addr)
        view = stack.enter_context(unix_paths.View(q.tid, path))
        target: Found | OSError
        alive = own = False
        try:
            with _acting_as(q.tid):
                target = view.find()
            stack.callback(os.close, target.fd)
            alive = target.is_socket and _is_alive(target.fd)
            own = alive and self._is_own(q, target)
        except OSError as error:
            target = error
        if not _core.super_valid(self._sup.handle, q.id):
            return GONE  # what was looked at may have been another's
        if own and not isinstance(target, OSError):
            return self._to(q, _address_of(target.fd))
        refusal = self._outward(q, view.text, target, stack)
        if isinstance(refusal, int):
            return refusal
        if isinstance(target, OSError):
            return target.errno or errno.EIO
        if not alive:
            with _acting_as(q.tid):
                return _nobody(target.fd)
        self._record(q, target.real, refusal, refusal.error)
        return refusal.error

    def _is_own(self, q: Question, found: Found) -> bool:
        """Whether a socket of the guest's network is bound to that file, and none of ours."""
        devices, inode = found.identity(q.tid)
        # The kernel tells too little of an inode to tell two apart for sure, so it must be nobody else's.
        return self._inside.has(devices, inode) and not self._outside.has(devices, inode)

    def _outward(
        self, q: Question, text: str, target: Found | OSError, stack: ExitStack
    ) -> int | Decision:
        """To a socket of the host, if a rule names it: what came of it, or why not."""
        names = [text]
        if not isinstance(target, OSError) and target.real not in names:
            names.append(target.real)
        decisions = [self._sup.point.policy.unix(name) for name in names]
        refusal = next((d for d in decisions if not d.allowed), None)
        if any(not d.allowed and not d.rule.startswith("default") for d in decisions):
            decisions = []
        for name, decision in zip(names, decisions, strict=False):
            if not decision.allowed:
                continue
            try:
                fd = os.open(name, os.O_PATH | os.O_CLOEXEC)
            except OSError as error:
                number = error.errno or errno.EIO
            else:
                stack.callback(os.close, fd)
                number = self._to(q, _address_of(fd))
            if number != GONE:
                self._record(q, name, decision, number)
            return number
        assert refusal is not None
        return refusal

    def _to(self, q: Question, addr: bytes) -> int:
        """Connect, for as long as the caller waits; its socket's O_NONBLOCK and SO_SNDTIMEO hold as they are."""
        limit = _send_timeout(q.sock)
        until = time.monotonic() + limit if limit else None
        self._remember(q)
        signals = 0
        while True:
            with _acting_as(q.tid):
                error = _core.connect_start(q.sock.fileno(), addr, ROUND_US)
            if error != errno.EINPROGRESS:
                return error
            if self._stopped or not _core.super_valid(self._sup.handle, q.id):
                return GONE
            # One for the process is taken at once by a thread that runs: still there a round later, it is for one that
            # waits.
            signals = signals + 1 if has_signal(q.tid) else 0
            if signals > 1:
                _core.super_interrupt(self._sup.handle, q.id, q.tid)
                return GONE
            if until is not None and time.monotonic() >= until:
                return errno.EAGAIN

    def _record(self, q: Question, name: str, decision: Decision, error: int) -> None:
        from xensock.supervisor.supervisor import Verdict

        verdict = Verdict(decision, "direct", "allow") if decision.allowed else None
        verdict = verdict or Verdict(decision, "", "deny")
        self._sup.record(q, Verb.CONNECT, f"unix:{name}", verdict, error)

    def listen(self, sup: Supervisor, q: Question) -> None:
        """listen(2): nobody is asked, but who listens is remembered."""
        error = 0
        try:
            with _acting_as(q.tid):
                q.sock.listen(min(q.args[1] & 0xFFFFFFFF, 0x7FFFFFFF))
            with self._lock:
                if len(self._listeners) >= MOST_KNOWN:
                    self._listeners.clear()
                self._listeners[q.sock.getsockname()] = _numbers(q.tid, "NStgid:")
        except OSError as failure:
            error = failure.errno or errno.EIO
        sup.answer(q, error)

    # --- who connected

    def _remember(self, q: Question) -> None:
        with self._lock:
            self._callers[os.fstat(q.sock.fileno()).st_ino] = _numbers(q.tid, "NStgid:")
            while len(self._callers) > MOST_KNOWN:
                self._callers.popitem(last=False)

    def peer(self, sup: Supervisor, q: Question) -> None:
        """SO_PEERCRED and SO_PEERPIDFD: as the kernel says, but for connections that were made here."""
        credentials = q.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        pid, uid, gid = UCRED.unpack(credentials)
        if pid != os.getpid():
            _core.super_answer(sup.handle, q.id, 0, 0, True)
            return
        ours = os.fstat(q.sock.fileno()).st_ino
        other = self._inside.peer(ours)
        with self._lock:
            if ours in self._callers:
                numbers = self._listeners.get(q.sock.getpeername(), [])
            else:
                numbers = self._callers.get(other, [])
        try:
            if q.args[2] & 0xFFFFFFFF == SO_PEERPIDFD:
                self._pidfd(sup, q, numbers)
                return
            depth = len(_numbers(q.tid, "NStgid:"))
            shown = numbers[depth - 1] if 0 < depth <= len(numbers) else 0
            value = UCRED.pack(shown, uid, gid)
            _core.write_memory(
                q.tid, q.args[4], struct.pack("=i", self._room(q, len(value), value))
            )
            error = 0
        except OSError as failure:
            error = failure.errno or errno.EIO
        sup.answer(q, error)

    def _room(self, q: Question, size: int, value: bytes) -> int:
        """Write as much of the value as the caller has room for; how much that was. Raises OSError."""
        room: int = struct.unpack("=i", _core.read_memory(q.tid, q.args[4], 4))[0]
        if room < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if not _core.super_valid(self._sup.handle, q.id):
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))
        used: int = min(room, size)
        if used:
            _core.write_memory(q.tid, q.args[3], value[:used])
        return used

    def _pidfd(self, sup: Supervisor, q: Question, numbers: list[int]) -> None:
        if not numbers:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        (room,) = struct.unpack("=i", _core.read_memory(q.tid, q.args[4], 4))
        if room < 4:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fd = os.pidfd_open(numbers[0])
        try:
            reader = _core.super_addfd(sup.handle, q.id, fd, -2, os.O_CLOEXEC)
        finally:
            os.close(fd)
        if reader < 0:
            raise OSError(-reader, os.strerror(-reader))
        self._room(q, 4, struct.pack("=i", reader))
        sup.answer(q, 0)


def _address_of(fd: int) -> bytes:
    """An address by which our kernel finds the file that a descriptor of ours holds."""
    return struct.pack("=H", socket.AF_UNIX) + f"/proc/self/fd/{fd}".encode() + b"\0"


def _nobody(fd: int) -> int:
    """What connecting to a file says that is no socket, or a dead one (unix(7))."""
    writable = os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)
    return errno.ECONNREFUSED if writable else errno.EACCES


def _is_alive(fd: int) -> bool:
    """Whether some socket is bound to the file. One of another type shows that without anybody noticing: connecting
    datagram sockets is nothing that the other end hears of."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return _core.connect_start(probe.fileno(), _address_of(fd), ROUND_US) != errno.ECONNREFUSED


def _send_timeout(sock: socket.socket) -> float:
    seconds, micros = struct.unpack(
        "=qq", sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16)
    )
    return float(seconds + micros / 1e6)


def _status(tid: int) -> dict[str, str]:
    """proc(5), status: its lines by their first word; nothing once the thread is gone."""
    found: dict[str, str] = {}
    with suppress(OSError), open(f"/proc/{tid}/status", errors="replace") as lines:
        for line in lines:
            word, _, rest = line.partition("\t")
            found[word] = rest.strip()
    return found


def _numbers(tid: int, word: str) -> list[int]:
    return [int(number) for number in _status(tid).get(word, "").split()]


def has_signal(tid: int) -> bool:
    """Whether a signal waits that would have ended the call natively: for this thread, or for any of its process."""
    status = _status(tid)
    open_to = ~int(status.get("SigBlk:", "0"), 16)
    pending = int(status.get("SigPnd:", "0"), 16) | int(status.get("ShdPnd:", "0"), 16)
    return bool(pending & open_to)


@contextmanager
def _acting_as(tid: int) -> Iterator[None]:
    """Let this thread be who the guest's thread is: whom files belong to matters, and who is seen to connect.

    An ordinary user's guest has one user, who is ours.
    """
    if os.geteuid() != 0:
        yield
        return
    status = _status(tid)
    if "Groups:" not in status:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
    uid, gid = (int(status[word].split()[1]) for word in ("Uid:", "Gid:"))
    ours = os.getegid(), os.getgroups()
    groups = [int(group) for group in status["Groups:"].split()]
    if (uid, gid, groups) == (0, *ours):
        yield
        return
    _core.act_as(uid, gid, struct.pack(f"={len(groups)}I", *groups))
    try:
        yield
    finally:
        _core.act_as(0, ours[0], struct.pack(f"={len(ours[1])}I", *ours[1]))
