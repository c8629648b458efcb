"""The system calls that the checks try, where Python 3.11 has no wrapper for them.

Every function raises OSError with the kernel's errno. Sources: the man page named in each.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
SO_NETNS_COOKIE = 71  # linux/socket.h, 5.14

# Calls whose numbers differ between machines; those from 424 on are the same everywhere.
_NUMBERS = {
    "x86_64": {"seccomp": 317, "getpgid": 121},
    "aarch64": {"seccomp": 277, "getpgid": 155},
    "riscv64": {"seccomp": 277, "getpgid": 155},
}
NUMBERS = _NUMBERS.get(platform.machine(), _NUMBERS["aarch64"])
PIDFD_GETFD = 438
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_RESTRICT_SELF = 446

_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
_NOTIF_RECV = 0xC0502100  # ioctl numbers of linux/seccomp.h
_NOTIF_SEND = 0xC0182101
_NOTIF_ADDFD = 0x40182103
_ADDFD_FLAG_SEND = 1 << 1
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _syscall(number: int, *arguments: object) -> int:
    return _checked(_libc.syscall(ctypes.c_long(number), *arguments))


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def mount(source: str, target: str, kind: str | None, flags: int = 0) -> None:
    """mount(2) without data."""
    name = kind.encode() if kind is not None else None
    _checked(_libc.mount(source.encode(), target.encode(), name, ctypes.c_ulong(flags), None))


def no_new_privs() -> None:
    """Needed before an unprivileged seccomp filter or Landlock domain (prctl(2))."""
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): a duplicate of another process's descriptor."""
    return _syscall(PIDFD_GETFD, pidfd, fd, 0)


def read_memory(pid: int, address: int, length: int) -> bytes:
    """process_vm_readv(2) of `length` bytes at `address` of process `pid`."""
    buffer = ctypes.create_string_buffer(length)
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), length)
    remote = (ctypes.c_size_t * 2)(address, length)
    call = _libc.process_vm_readv
    call.restype = ctypes.c_ssize_t
    one = ctypes.c_ulong(1)
    count = _checked(call(ctypes.c_int(pid), local, one, remote, one, ctypes.c_ulong(0)))
    return buffer.raw[:count]


def landlock_abi() -> int:
    """The version of the Landlock ABI (landlock_create_ruleset(2)); 4 has TCP rules (6.7)."""
    return _syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)


def landlock_refuse_tcp() -> None:
    """Take this thread's right to bind and connect TCP sockets (landlock(7)); not to be undone."""
    handled = struct.pack("QQ", 0, 0b11)  # no file system rules; BIND_TCP and CONNECT_TCP
    ruleset = _syscall(LANDLOCK_CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    try:
        _syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def notify_on(number: int) -> int:
    """Install a filter that reports system call `number` (seccomp(2)); the listener's descriptor.

    It looks at the call's number only: good for a probe, not for confinement.
    """
    code = b"".join(
        struct.pack("HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # load the number
            (0x15, 0, 1, number),  # equal: the next instruction, else the last
            (0x06, 0, 0, 0x7FC00000),  # SECCOMP_RET_USER_NOTIF
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )
    program = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(program))
    return _syscall(
        NUMBERS["seccomp"],
        _SECCOMP_SET_MODE_FILTER,
        _SECCOMP_FILTER_FLAG_NEW_LISTENER,
        ctypes.create_string_buffer(header, len(header)),
    )


def _ioctl(fd: int, request: int, argument: ctypes.Array[ctypes.c_char]) -> int:
    return _checked(_libc.ioctl(ctypes.c_int(fd), ctypes.c_ulong(request), argument))


def receive_notification(listener: int) -> int:
    """Wait for a report; its id (SECCOMP_IOCTL_NOTIF_RECV of seccomp_unotify(2))."""
    notification = ctypes.create_string_buffer(80)
    _ioctl(listener, _NOTIF_RECV, notification)
    (identity,) = struct.unpack_from("Q", notification)
    return int(identity)


def answer_with_fd(listener: int, identity: int, fd: int) -> None:
    """Give the caller a duplicate of `fd` as the result of its call (ADDFD with SEND, 5.14)."""
    request = struct.pack("QIIII", identity, _ADDFD_FLAG_SEND, fd, 0, 0)
    _ioctl(listener, _NOTIF_ADDFD, ctypes.create_string_buffer(request, len(request)))


def answer(listener: int, identity: int, value: int) -> None:
    """Let the caller's call return `value` (SECCOMP_IOCTL_NOTIF_SEND)."""
    response = struct.pack("QqiI", identity, value, 0, 0)
    _ioctl(listener, _NOTIF_SEND, ctypes.create_string_buffer(response, len(response)))


def trapped_call() -> int:
    """Make the harmless call that `notify_on(NUMBERS["getpgid"])` reports."""
    return _syscall(NUMBERS["getpgid"], 0)
