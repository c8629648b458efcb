"""Run a command where a system call fails: confine.py CALL:ERRNO… [--supervised] -- COMMAND…

A real seccomp filter, as a container's profile is one. `--supervised` installs a listener too, so
that the command already has a supervisor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from xensock.doctor import kernel

SECCOMP_RET_ERRNO = 0x00050000
NUMBERS = {
    "x86_64": {"unshare": 272, "mount": 165, "process_vm_readv": 310},
    "aarch64": {"unshare": 97, "mount": 40, "process_vm_readv": 270},
}
COMMON = {"pidfd_getfd": 438, "landlock": 444, "seccomp": kernel.NUMBERS["seccomp"]}


def refuse(number: int, error: int) -> None:
    code = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),
            (0x15, 0, 1, number),
            (0x06, 0, 0, SECCOMP_RET_ERRNO | error),
            (0x06, 0, 0, 0x7FFF0000),
        )
    )
    program = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", 4, ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    # seccomp(2) itself: prctl(PR_SET_SECCOMP) would do as well, once seccomp is refused.
    if libc.prctl(22, 2, ctypes.create_string_buffer(header, len(header)), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


def main() -> None:
    split = sys.argv.index("--")
    wishes, command = sys.argv[1:split], sys.argv[split + 1 :]
    kernel.no_new_privs()
    for wish in wishes:
        if wish == "--supervised":
            listener = kernel.notify_on(0xFFFF)
            os.set_inheritable(listener, True)
            continue
        name, error = wish.split(":")
        numbers = NUMBERS[os.uname().machine] | COMMON
        refuse(numbers[name], getattr(errno, error))
    os.execvp(command[0], command)


main()
