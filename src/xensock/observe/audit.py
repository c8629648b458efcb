"""The audit log: append-only JSON lines, one for each mediated call and for the end of each connection.

Theory of operation: whoever records puts the record into a bounded queue and goes on; one thread writes what has
gathered, whole lines in one write(2), so that a crash leaves at most one torn line, which the next opening cuts off.
Several backends may append to one file: each holds a shared lock on it (flock(2)) while it writes, and the file is
changed (rotated, repaired) under the directory's lock only. The format is docs/reference/audit.md, its schema
audit.schema.json beside this file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from xensock import __version__, _core
from xensock.background import give_way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xensock.calls.record import Record

SCHEMA = 1
HEAD = b'{"schema":%d,"seq":' % SCHEMA  # of a line, up to its number
QUEUE = 65536  # records that wait to be written at most
BATCH = 256  # records of one write(2) at most
GATHER_S = 0.02  # how long the first of them waits for others
RETRY_S = 0.5  # between attempts at a file that cannot be written
LARGEST = 64 << 20  # bytes of a file before it is rotated
KEEP = 5  # rotated files that are kept


class AuditError(OSError):
    """The log cannot be opened; `filename` is its path."""


class AuditLog:
    """Writes records to a file. `record` may be called from any thread, and never waits.

    size      of the file in bytes, which it does not exceed: it is rotated before, to PATH.1, PATH.2, …
    keep      how many of those there are at most
    complain  is told in a sentence what is wrong with the file, once until it works again

    Raises AuditError.
    """

    def __init__(
        self,
        path: str,
        *,
        size: int = LARGEST,
        keep: int = KEEP,
        queue: int = QUEUE,
        complain: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._path = os.path.abspath(path)
        self._size, self._keep, self._room = size, keep, queue
        self._complain = complain
        self._waiting: deque[Record | tuple[bytes, int]] = deque()
        self._lock = threading.Lock()  # of the numbers of records that wait, and that are lost
        self._queued = self._lost = 0
        self._failing = False
        self._seq = 0
        self._some = threading.Event()
        self._stopped = threading.Event()
        self._encode = msgspec.json.Encoder().encode
        self._unwritten = b""
        self._torn = False  # the last write(2) ended within a line
        self._begun = False  # the file has the line by which we opened it, and no other
        self._fd = -1
        try:
            self._open()
        except OSError as error:
            raise AuditError(error.errno, error.strerror, self._path) from error
        self._thread = threading.Thread(target=self._run, name="xs-audit", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether a record would be lost now: the queue is full, or the file cannot be written."""
        return self._failing or self._queued >= self._room

    def record(self, record: Record) -> None:
        """Take one; what finds no room is counted, and the count recorded."""
        if self._admitted(1):
            self._waiting.append(record)
            self._tell()

    def take(self, lines: bytes, count: int) -> None:
        """As `record`, of so many lines that somebody made, from their "kind" on (supervisor.swift)."""
        room = self._admitted(count)
        if room < count:
            lines = b"".join(lines.splitlines(keepends=True)[:room])
        if room:
            self._waiting.append((lines, room))
            self._tell()

    def _admitted(self, count: int) -> int:
        """For how many of those there is room; the others are lost."""
        with self._lock:
            room = max(min(count, self._room - self._queued), 0)
            self._queued += room
            self._lost += count - room
        return room

    def _tell(self) -> None:
        if not self._some.is_set():
            self._some.set()

    def close(self) -> None:
        """Write what waits, and stop."""
        self._stopped.set()
        self._some.set()
        self._thread.join()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- the writer's thread

    def _run(self) -> None:
        give_way()
        while not self._stopped.is_set():
            self._some.wait()
            self._stopped.wait(GATHER_S)
            self._some.clear()
            self._write()
        self._write()

    def _write(self) -> None:
        """Write all that waits; what cannot be written waits on."""
        while self._unwritten or self._waiting or self._lost:
            if not self._unwritten:
                self._unwritten = self._taken()
            try:
                self._append()
            except OSError as error:
                self._trouble(error)
                if self._stopped.wait(RETRY_S):
                    return
            else:
                self._failing = False

    def _taken(self) -> bytes:
        """The lines of some records that wait, and of how many found no room."""
        lines: list[bytes] = []
        taken = 0
        while self._waiting and taken < BATCH:
            found = self._waiting.popleft()
            if isinstance(found, tuple):
                lines.append(_core.lines_number(found[0], HEAD, self._seq + 1))
                self._seq += found[1]
                taken += found[1]
            else:
                lines.append(self._line(found))
                taken += 1
        with self._lock:
            self._queued -= taken
            lost, self._lost = self._lost, 0
        if lost:
            lines.append(self._note("dropped", records=lost))
        return b"".join(lines)

    def _trouble(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            self._complain(f"cannot write the audit log {self._path}: {error.strerror}")

    def _line(self, record: Record) -> bytes:
        self._seq += 1
        kind = b"end" if record.verb == "close" else b"call"
        try:
            body = self._encode(record)
        except UnicodeEncodeError:  # a path that is no text: its bytes are lone surrogates
            body = json.dumps(msgspec.to_builtins(record), separators=(",", ":")).encode()
        if not body.isascii():
            # What a guest chose must not steer a terminal that shows the file: some of it could.
            body = json.dumps(json.loads(body), separators=(",", ":")).encode()
        return b'%b%d,"kind":"%b",%b\n' % (HEAD, self._seq, kind, body[1:])

    def _note(self, kind: str, **fields: Any) -> bytes:
        self._seq += 1
        head = {"schema": SCHEMA, "seq": self._seq, "kind": kind, "time": time.time()}
        return json.dumps({**head, **fields}, separators=(",", ":")).encode() + b"\n"

    def _append(self) -> None:
        """Write what is unwritten. Raises OSError; what was written by then is not written again."""
        if self._fd >= 0 and self._moved():
            os.close(self._fd)
            self._fd = -1
        if self._fd < 0:
            self._open()
        while self._unwritten:
            end = self._fitting()
            if not end:
                self._rotate()
                continue
            written = os.write(self._fd, self._unwritten[:end])
            self._torn = self._unwritten[written - 1 : written] != b"\n"
            self._unwritten, self._begun = self._unwritten[written:], False

    def _fitting(self) -> int:
        """How much of what is unwritten the file may have: whole lines, as many as fit; 0 where it has to be rotated. A
        line that no file has room for has one to itself."""
        first = self._unwritten.index(b"\n") + 1
        room = self._size - os.fstat(self._fd).st_size
        if len(self._unwritten) <= room:
            return len(self._unwritten)
        fitting = self._unwritten.rfind(b"\n", 0, max(room, 0)) + 1
        # The rest of a line, and what follows the line by which a file begins, go where that is.
        return fitting or (first if self._torn or self._begun else 0)

    # --- the file

    def _open(self) -> None:
        with self._directory_locked():
            self._fd = os.open(
                self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            torn = _repair(self._fd) if self._alone() else 0
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            fields = {"xensock": __version__, "pid": os.getpid()}
            if torn:
                fields["torn"] = torn
            self._begun = os.fstat(self._fd).st_size == 0
            os.write(self._fd, self._note("open", **fields))

    def _alone(self) -> bool:
        """Whether no other backend has the file open. (Then nobody else gets in, for as long as we write.)"""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._fd, fcntl.LOCK_SH)  # a failed change of kind may have lost it
            return False
        return True

    def _moved(self) -> bool:
        """Whether the path leads to another file by now: another backend rotated, or somebody removed it."""
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (ours.st_ino, ours.st_dev) != (there.st_ino, there.st_dev)

    def _rotate(self) -> None:
        with self._directory_locked():
            if not self._moved():
                self._shift()
        os.close(self._fd)
        self._fd = -1
        self._open()

    def _shift(self) -> None:
        if self._keep < 1:
            os.unlink(self._path)
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._path}.{self._keep}")
        for number in range(self._keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.rename(self._path, f"{self._path}.1")

    @contextlib.contextmanager
    def _directory_locked(self) -> Iterator[None]:
        fd = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _repair(fd: int) -> int:
    """Cut off a last line without an end, which a crash left; how many bytes that were."""
    size = end = os.fstat(fd).st_size
    while end:
        at = max(0, end - 65536)
        found = os.pread(fd, end - at, at).rfind(b"\n")
        if found >= 0:
            end = at + found + 1
            break
        end = at
    if end != size:
        os.ftruncate(fd, end)
    return size - end


def schema() -> dict[str, Any]:
    """The JSON Schema of a line."""
    text = Path(__file__).with_name("audit.schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
