"""Ways around by sockets of other kinds, by options, by other processes and by namespaces."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import resource
import socket
import struct
from typing import TYPE_CHECKING

import kit
from kit import SITE, attempt, stream, system

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM = socket.SOCK_STREAM
X86 = os.uname().machine == "x86_64"
PTRACE, VM_READ, VM_WRITE, SETNS = (101, 310, 311, 308) if X86 else (117, 270, 271, 268)
SECCOMP, REQUEST_KEY, BPF = (317, 249, 321) if X86 else (277, 218, 280)
IO_URING_SETUP, PIDFD_OPEN, PIDFD_GETFD = 425, 434, 438
OTHER = SITE["other"]  # a process of the same user, outside
NEIGHBOUR = SITE["neighbour"][0]  # and one in another guest; natively one more outside
GROUP = socket.inet_aton("239.1.2.3")

for name, arguments in {
    "raw": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP),
    "raw of ICMP": (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "raw of IPv6": (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6),
    "packet": (socket.AF_PACKET, socket.SOCK_RAW, 0x300),
    "packet without headers": (socket.AF_PACKET, socket.SOCK_DGRAM, 0x300),
    "vsock": (40, STREAM, 0),
    "xdp": (44, socket.SOCK_RAW, 0),
    "smc": (43, STREAM, 0),
    "bluetooth": (31, STREAM, 3),
    "tipc": (30, STREAM, 0),
    "can": (29, socket.SOCK_RAW, 1),
    "alg": (38, socket.SOCK_SEQPACKET, 0),
    "rds": (21, socket.SOCK_SEQPACKET, 0),
    "key": (15, socket.SOCK_RAW, 2),
    "sctp": (socket.AF_INET, STREAM, 132),
    "sctp by packets": (socket.AF_INET, socket.SOCK_SEQPACKET, 132),
    "udp-lite": (socket.AF_INET, socket.SOCK_DGRAM, 136),
    "dccp": (socket.AF_INET, 6, 33),
    "l2tp": (socket.AF_INET, socket.SOCK_DGRAM, 115),
    "netfilter": (socket.AF_NETLINK, socket.SOCK_RAW, 12),
    "audit": (socket.AF_NETLINK, socket.SOCK_RAW, 9),
    "transformations": (socket.AF_NETLINK, socket.SOCK_RAW, 6),
}.items():
    attempt(f"socket: {name}")(lambda arguments=arguments: socket.socket(*arguments).close())


@attempt("every other family")
def _() -> None:
    """Done if any family beyond those of guests exists, as a stream or as datagrams."""
    worst = OSError(97, "EAFNOSUPPORT")
    for family in {*range(64)} - {1, 2, 10, 16, 17}:
        for kind in (1, 2, 3, 5):
            try:
                socket.socket(family, kind, 0).close()
            except OSError as error:
                if error.errno != 97:
                    worst = error
            else:
                return
    raise worst


SET = {
    "bind to a device": (1, 25, b"lo"),
    "bind to an interface": (1, 62, struct.pack("i", 1)),
    "mark": (1, 36, struct.pack("i", 1)),
    "a route of its own": (0, 4, bytes([131, 11, 4]) + socket.inet_aton("192.0.2.1") * 2 + b"\0"),
    "transparent": (0, 19, struct.pack("i", 1)),
    "IP_UNICAST_IF": (0, 50, struct.pack("!i", 1)),
    "repair": (6, 19, struct.pack("i", 1)),
    "fast open connect": (6, 30, struct.pack("i", 1)),
    "join by a source": (0, 39, GROUP + bytes(4) + socket.inet_aton("192.0.2.1")),
    "join": (0, 42, struct.pack("=Q", 0) + struct.pack("=HH", 2, 0).ljust(4) + GROUP + bytes(120)),
}
SET6 = {
    "IPV6_UNICAST_IF": (41, 76, struct.pack("!i", 1)),
    "source routing in IPv6": (41, 57, bytes([0, 2, 4, 0, 0, 0, 0, 0]) + socket.inet_pton(10, "2001:db8::1")),
    "options of the old interface": (41, 6, b""),
    "transparent in IPv6": (41, 75, struct.pack("i", 1)),
    "join in IPv6": (
        41, 42,
        struct.pack("=Q", 0) + struct.pack("=HHI", 10, 0, 0) + socket.inet_pton(10, "ff02::99") + bytes(104),
    ),
}  # fmt: skip
for family, table in ((socket.AF_INET, SET), (socket.AF_INET6, SET6)):
    for name, option in table.items():
        attempt(f"option: {name}")(
            lambda family=family, option=option: stream(family).setsockopt(*option)
        )


@attempt("the socket's network namespace")
def _() -> None:
    sock = stream()
    os.close(fcntl.ioctl(sock.fileno(), 0x894C))


@attempt("the host's addresses by SIOCGIFCONF")
def _() -> None:
    room = ctypes.create_string_buffer(40 * 64)
    asked = struct.pack("=i4xQ", len(room), ctypes.addressof(room))
    sock = stream()
    fcntl.ioctl(sock.fileno(), 0x8912, asked)
    if socket.inet_aton(SITE["host"]) not in room.raw:
        raise PermissionError(1, "not shown")


@attempt("the host's addresses in /proc")
def _() -> None:
    with open("/proc/net/fib_trie") as trie:
        if SITE["host"] not in trie.read():
            raise PermissionError(1, "not shown")


@attempt("typing on the terminal")
def _() -> None:
    pid, terminal = pty.fork()
    if not pid:
        code = 0
        try:
            fcntl.ioctl(0, 0x5412, b"x")
        except OSError as error:
            code = error.errno
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(terminal)
    if code:
        raise OSError(code, "TIOCSTI")


@attempt("option: another layer")
def _() -> None:
    sock = stream()
    sock.connect((SITE["peer"], SITE["allowed"]))
    sock.setsockopt(6, 31, b"tls")  # TCP_ULP


@attempt("io_uring")
def _() -> None:
    os.close(system(IO_URING_SETUP, 4, ctypes.create_string_buffer(120)))


def in_a_child(call: Callable[[], object]) -> None:
    """What a process of its own does, whose end does not matter. Raises its OSError, EPERM if it was killed."""
    pid = os.fork()
    if not pid:
        code = 0
        try:
            call()
        except OSError as error:
            code = error.errno or 255
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code if code > 0 else 1, "in a child")


@attempt("x32")
def _() -> None:
    """connect(2) by the numbers of the ABI with short pointers (Documentation/x86)."""
    if not X86:
        raise OSError(38, "no x32")
    where = ctypes.create_string_buffer(kit.sockaddr4(SITE["peer"], SITE["refused"]))
    sock = stream()
    sock.setblocking(True)
    in_a_child(lambda: system(0x40000000 | 42, sock.fileno(), where, 16))


@attempt("a second listener")
def _() -> None:
    allow = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
    program = struct.pack("=H6xQ", 1, ctypes.addressof(allow))
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
    pid = os.fork()
    if not pid:
        code = 0
        try:
            system(SECCOMP, 1, 8, ctypes.create_string_buffer(program))
        except OSError as error:
            code = error.errno
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "seccomp")


@attempt("a key by a program of the host's")
def _() -> None:
    try:
        system(REQUEST_KEY, b"user", b"xensock:nobody", b"x", -2)
    except OSError as error:
        if error.errno not in (126, 2, 38):  # ENOKEY: asked, and there is none
            raise


@attempt("bpf")
def _() -> None:
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0))
    text = ctypes.create_string_buffer(b"GPL")
    # BPF_PROG_TYPE_CGROUP_SOCK_ADDR for BPF_CGROUP_INET4_CONNECT, which could rewrite addresses of others.
    head = struct.pack("=IIQQ", 18, 2, ctypes.addressof(code), ctypes.addressof(text))
    attributes = head.ljust(68, b"\0") + struct.pack("=I", 10)
    os.close(system(BPF, 5, ctypes.create_string_buffer(attributes), len(attributes)))


def read_memory(pid: int) -> None:
    with open(f"/proc/{pid}/mem", "rb"):
        pass


def write_memory(pid: int, address: int) -> None:
    room = ctypes.create_string_buffer(8)
    piece = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(room), 8))
    where = ctypes.create_string_buffer(struct.pack("=QQ", address, 8))
    system(VM_WRITE, pid, piece, 1, where, 1, 0)


def trace(pid: int) -> None:
    system(PTRACE, 0x4206, pid, 0, 0)  # PTRACE_SEIZE
    system(PTRACE, 0x4207, pid, 0, 0)


def take_descriptor(pid: int) -> None:
    handle = system(PIDFD_OPEN, pid, 0)
    os.close(system(PIDFD_GETFD, handle, 0, 0))


attempt("signal a process outside")(lambda: os.kill(OTHER, 0))
attempt("memory of a process outside")(lambda: read_memory(OTHER))
attempt("write memory of a process outside")(lambda: write_memory(OTHER, SITE["address"]))
attempt("trace a process outside")(lambda: trace(OTHER))
attempt("descriptors of a process outside")(lambda: take_descriptor(OTHER))
attempt("signal a process of another guest")(lambda: os.kill(NEIGHBOUR, 0))
attempt("memory of a process of another guest")(lambda: read_memory(NEIGHBOUR))
attempt("write memory of a process of another guest")(
    lambda: write_memory(NEIGHBOUR, SITE["neighbour"][1])
)
attempt("trace a process of another guest")(lambda: trace(NEIGHBOUR))
attempt("descriptors of a process of another guest")(lambda: take_descriptor(NEIGHBOUR))


@attempt("another network namespace")
def _() -> None:
    fd = os.open(SITE["netns"], os.O_RDONLY)
    pid = os.fork()
    if not pid:
        code = 0
        try:
            system(SETNS, fd, 0x40000000)
        except OSError as error:
            code = error.errno
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "setns")


@attempt("change an interface")
def _() -> None:
    request = bytearray(b"lo".ljust(40, b"\0"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock.fileno(), 0x8913, request)
        fcntl.ioctl(sock.fileno(), 0x8914, request)  # the flags it has


@attempt("an address that cannot be read")
def _() -> None:
    sock = stream()
    if kit.libc.connect(sock.fileno(), ctypes.c_void_p(16), 16):
        raise OSError(ctypes.get_errno(), "connect")


@attempt("no room for a descriptor")
def _() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        socket.socket()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


kit.main()
