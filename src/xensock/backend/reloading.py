"""A policy file that changes while guests run under it: loaded anew, or left as it was where it is broken."""

from __future__ import annotations

import ctypes
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from select import POLLIN, poll
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.policy.point import Current
    from xensock.policy.policy import Policy

IN_CLOSE_WRITE, IN_MOVED_TO, IN_CLOEXEC, IN_NONBLOCK = 0x8, 0x80, 0x80000, 0x800


@dataclass(frozen=True, slots=True)
class Source:
    """Where a policy comes from: the path of its file, and how to read it, as `Reloader` wants it."""

    path: str
    load: Callable[[], Policy]


class Reloader:
    """Puts another policy in the place of `current`.

    load     reads it; raises ValueError or OSError where it is broken
    applied  is called once another is in force
    say      takes a line for a person
    """

    def __init__(
        self,
        current: Current,
        load: Callable[[], Policy],
        applied: Callable[[], object],
        say: Callable[[str], None],
    ) -> None:
        self._current = current
        self._load = load
        self._applied = applied
        self._say = say
        self._lock = threading.Lock()

    def reload(self) -> str:
        """Load it anew; why that failed, "" where it did not. What was in force stays so then."""
        with self._lock:
            try:
                policy = _fitting(self._load(), self._current.policy)
            except (ValueError, OSError) as error:
                why = f"{error} (hint: {error.hint})" if hasattr(error, "hint") else str(error)
                self._say(f"the policy was not loaded, the one before stays in force: {why}")
                return why
            changed = policy.unix_datagrams != self._current.policy.unix_datagrams
            self._current.policy = policy
            self._applied()
            self._say(f"the policy was loaded anew: {len(policy.entries)} rules")
            if changed:
                self._say("its unix_datagrams is for guests that begin from now on")
            return ""


class NetworksError(ValueError):
    """Another policy has other networks than those that were reached for the guests."""

    def __init__(self) -> None:
        super().__init__("its [networks] are not those of the one before")
        self.hint = "start the guests, or the backend, again"


def _fitting(policy: Policy, before: Policy) -> Policy:
    known = before.networks if before.networks_needed else ()
    if policy.networks_needed and (policy.networks != known or not before.networks_needed):
        raise NetworksError
    return policy


class FileWatch:
    """Tells when a file was written anew, or another took its name (inotify(7)). Raises OSError."""

    def __init__(self, path: str) -> None:
        self._name = os.fsencode(Path(path).name)
        folder = os.fsencode(Path(path).absolute().parent)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = int(libc.inotify_init1(IN_CLOEXEC | IN_NONBLOCK))
        if (
            self._fd < 0
            or libc.inotify_add_watch(self._fd, folder, IN_CLOSE_WRITE | IN_MOVED_TO) < 0
        ):
            number = ctypes.get_errno()
            if self._fd >= 0:
                os.close(self._fd)
            raise OSError(number, os.strerror(number), path)

    def fileno(self) -> int:
        """Readable when there is something to `read`."""
        return self._fd

    def read(self) -> bool:
        """Whether the file was among what changed."""
        try:
            data = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return False
        at, found = 0, False
        while at + 16 <= len(data):
            length = int.from_bytes(data[at + 12 : at + 16], "little")
            found = found or data[at + 16 : at + 16 + length].rstrip(b"\0") == self._name
            at += 16 + length
        return found

    def close(self) -> None:
        os.close(self._fd)


class Watcher:
    """A thread that calls `changed` whenever a file was written anew, until `close`. Raises OSError."""

    def __init__(self, path: str, changed: Callable[[], object]) -> None:
        self._watch = FileWatch(path)
        self._changed = changed
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="policy", daemon=True)
        self._thread.start()

    def close(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._watch.close()
        os.close(self._wake)

    def _serve(self) -> None:
        waiting = poll()
        waiting.register(self._watch.fileno(), POLLIN)
        waiting.register(self._wake, POLLIN)
        while True:
            ready = {fd for fd, _ in waiting.poll()}
            if self._wake in ready:
                return
            if self._watch.read():
                self._changed()
