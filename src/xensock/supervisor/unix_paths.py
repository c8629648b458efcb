"""Paths of unix sockets as a guest's thread means them: resolved in its own view of the files, and pinned.

What is found is held by an O_PATH descriptor, so whatever the guest does to names meanwhile, it is this file that is
judged and connected to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock import _core

if TYPE_CHECKING:
    from collections.abc import Iterator

# The caller's own root, directory and descriptors, which /proc shows to nobody else under these names.
_OWN = re.compile(
    rb"/(?:proc/(?:self|thread-self)/(root|cwd|fd/\d+)|dev/(fd/\d+))(?:/+(.*))?", re.S
)


@dataclass(frozen=True, slots=True)
class Found:
    """A file that a path leads to.

    fd     O_PATH; whoever is given this closes it
    real   where the file lies, without links
    """

    fd: int
    real: str

    @property
    def is_socket(self) -> bool:
        """Whether anything can be connected to there at all."""
        return stat.S_ISSOCK(os.fstat(self.fd).st_mode)

    def identity(self, tid: int) -> tuple[set[int], int]:
        """The numbers that the file's device may go by, and the inode's (btrfs and overlays show stat(2) their own)."""
        state = os.fstat(self.fd)
        return {state.st_dev, *_device_of_mount(self.fd, tid)}, state.st_ino


def path_in(addr: bytes) -> bytes:
    """The path in a struct sockaddr_un, up to its first zero byte; empty where it has none (unix(7))."""
    return addr[2:110].partition(b"\0")[0] if 2 < len(addr) <= 110 else b""


class View:
    """A thread's look at a path: what it starts from is opened here, the rest looked up by `find`, perhaps as its user.

    text   the path, absolute and in its shortest form, whether or not anything is there
    Raises OSError once the thread is gone.
    """

    def __init__(self, tid: int, path: bytes) -> None:
        self._path = path
        own = _OWN.fullmatch(path)
        self._directory = os.readlink(f"/proc/{tid}/cwd".encode())
        self.text = os.fsdecode(os.path.normpath(os.path.join(self._directory, path)))
        self._below = path
        self._base = self._root = -1
        try:
            self._root = os.open(f"/proc/{tid}/root", os.O_PATH | os.O_CLOEXEC)
            if own is not None:
                start, self._below = os.fsdecode(own[1] or own[2]), own[3] or b""
            else:
                start = "root" if path.startswith(b"/") else "cwd"
            self._is_root = start == "root"
            self._base = os.open(f"/proc/{tid}/{start}", os.O_PATH | os.O_CLOEXEC)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> View:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._base, self._root):
            if fd >= 0:
                os.close(fd)
        self._base = self._root = -1

    def find(self) -> Found:
        """What the path means to that thread. Raises OSError as the kernel's look-up; the caller closes `fd`."""
        fd = self._look_up()
        try:
            return Found(fd, os.readlink(f"/proc/self/fd/{fd}"))
        except BaseException:
            os.close(fd)
            raise

    def _look_up(self) -> int:
        if not self._below:
            return os.dup(self._base)
        try:
            return _core.open_within(self._base, self._below, self._is_root)
        except OSError as error:
            if error.errno != errno.EXDEV or self._path.startswith(b"/"):
                raise
        # It leads out of the directory.
        return _core.open_within(self._root, os.path.join(self._directory, self._path), True)


def _device_of_mount(fd: int, tid: int) -> Iterator[int]:
    """The device of the file system below the mount that the file was reached by (proc(5), fdinfo and mountinfo)."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/self/fdinfo/{fd}") as info:
        mount = dict(line.split() for line in info if line.startswith("mnt_id:")).get("mnt_id:")
        with open(f"/proc/{tid}/mountinfo", errors="replace") as mounts:
            for line in mounts:
                number, _, device = line.split()[:3]
                if number == mount:
                    major, minor = device.split(":")
                    yield os.makedev(int(major), int(minor))
