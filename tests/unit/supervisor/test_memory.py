"""A guest's memory that takes its time to be read: a page of a file system of its own, for instance."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from xensock import _core

if TYPE_CHECKING:
    from collections.abc import Callable

USERFAULTFD = {"x86_64": 323, "aarch64": 282}.get(os.uname().machine, -1)
# userfaultfd(2): whoever touches the page waits until this process says what is on it, which it does once it is asked
# to or has waited for long.
KEEPER = f"""
import ctypes, fcntl, mmap, os, select, struct, sys
fd = ctypes.CDLL(None, use_errno=True).syscall({USERFAULTFD}, os.O_CLOEXEC)
page = mmap.mmap(-1, mmap.PAGESIZE)
here = ctypes.addressof(ctypes.c_char.from_buffer(page))
fcntl.ioctl(fd, 0xC018AA3F, bytearray(struct.pack("=QQQ", 0xAA, 0, 0)))
fcntl.ioctl(fd, 0xC020AA00, bytearray(struct.pack("=QQQQ", here, mmap.PAGESIZE, 1, 0)))
print(here, flush=True)
os.read(fd, 32)  # somebody waits
print("touched", flush=True)
asked = bool(select.select([sys.stdin], [], [], 20)[0])
fcntl.ioctl(fd, 0xC020AA04, bytearray(struct.pack("=QQQq", here, mmap.PAGESIZE, 0, 0)))
print("asked" if asked else "nobody asked", flush=True)
sys.stdin.read()
"""


def missing() -> str:
    """Why no such page can be had here, or nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(USERFAULTFD, os.O_CLOEXEC)
    if fd < 0:
        return f"no userfaultfd(2) for this user: {os.strerror(ctypes.get_errno())}"
    os.close(fd)
    return ""


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
@pytest.mark.parametrize(
    "access",
    [
        lambda pid, where: _core.read_memory(pid, where, 8),
        lambda pid, where: _core.write_memory(pid, where, b"answered"),
    ],
    ids=["read", "written"],
)
def test_others_go_on_meanwhile(access: Callable[[int, int], object]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        where = int(keeper.stdout.readline())
        reader = threading.Thread(target=access, args=(keeper.pid, where))
        reader.start()
        assert keeper.stdout.readline() == "touched\n"
        keeper.stdin.write("now\n")
        keeper.stdin.flush()
        assert keeper.stdout.readline() == "asked\n"
        reader.join(20)
        assert not reader.is_alive()
