"""The seccomp filters that a process is really under, read back from the kernel."""

from __future__ import annotations

import ctypes
import errno
import os

PTRACE_ATTACH, PTRACE_DETACH, PTRACE_SECCOMP_GET_FILTER = 16, 17, 0x420C
WALL = 0x40000000
LONGEST = 4096  # instructions (BPF_MAXINSNS)
WIDTH = 8  # bytes of a struct sock_filter


def installed(pid: int) -> list[bytes]:
    """The programs, in the order of their installation (ptrace(2), PTRACE_SECCOMP_GET_FILTER). Needs root.

    Raises OSError: EIO, EINVAL where the kernel has no CONFIG_CHECKPOINT_RESTORE.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
    libc.ptrace.restype = ctypes.c_long

    def ptrace(request: int, at: int = 0, into: object = None) -> int:
        ctypes.set_errno(0)
        found: int = libc.ptrace(request, pid, at, into)
        if found < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return found

    ptrace(PTRACE_ATTACH)
    os.waitpid(pid, WALL)
    programs: list[bytes] = []
    try:
        while True:
            room = ctypes.create_string_buffer(LONGEST * WIDTH)
            try:
                count = ptrace(PTRACE_SECCOMP_GET_FILTER, len(programs), room)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return programs
                raise
            programs.append(room.raw[: count * WIDTH])
    finally:
        ptrace(PTRACE_DETACH)
