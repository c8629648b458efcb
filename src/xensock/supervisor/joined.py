"""A guest whose namespaces somebody else made, as an OCI runtime does for a container.

The launcher (native/init/join.c) goes into the network namespace alone and makes sockets there; the guest cannot see
it. The processes come with their own listeners, which the container's first step hands over.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess

from xensock.supervisor import rtnetlink
from xensock.supervisor.guest import MESSAGE, Guest
from xensock.supervisor.launch import STAGES, LaunchError, launcher_path

# Devices that the kernel puts into a new namespace by itself, where their modules are loaded.
_FALLBACK = frozenset(
    [
        "lo",
        "tunl0",
        "gre0",
        "gretap0",
        "erspan0",
        "ip_vti0",
        "ip6_vti0",
        "sit0",
        "ip6tnl0",
        "ip6gre0",
        "dummy0",
    ]
)
TERMS_MAGIC = 0x58534332
LANDLOCK = 2


class Joined(Guest):
    """A guest that others started. `close` ends our presence in its network, not its processes."""

    def __init__(
        self, control: socket.socket, maker: socket.socket, helper: subprocess.Popen[bytes]
    ) -> None:
        super().__init__(maker)
        self._control = control
        self._helper = helper

    def network(self) -> int:
        """A descriptor of its network namespace. Raises OSError."""
        return os.open(f"/proc/{self._helper.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        self._control.close()
        self._helper.wait()
        self.release()


def devices(pid: int) -> list[str]:
    """Names of the devices in the network of a process that the kernel did not put there itself. Raises OSError."""
    with open(f"/proc/{pid}/net/dev") as lines:
        names = [line.partition(":")[0].strip() for line in lines.readlines()[2:]]
    return [name for name in names if name not in _FALLBACK]


def level(pid: int) -> int:
    """How many PID namespaces a process is below this one (proc(5), NStgid). Raises OSError."""
    with open(f"/proc/{pid}/status") as status:
        return next((len(line.split()) - 2 for line in status if line.startswith("NStgid:")), 0)


def join(pid: int) -> Joined:
    """Join the network namespace of a process, and lay it out as a guest's. Raises LaunchError, OSError."""
    netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        guest = rejoin(netns)
    finally:
        os.close(netns)
    try:
        with guest.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
            rtnetlink.lay_out(link, rtnetlink.host_has_ipv6())
    except BaseException as error:
        guest.close()
        if isinstance(error, OSError):
            raise LaunchError("veth", error.errno or 5) from error
        raise
    return guest


def rejoin(netns: int) -> Joined:
    """Join a network namespace that is laid out already. Raises LaunchError, OSError."""
    control, far_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    maker, far_maker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with far_control, far_maker:
            fds = (far_control.fileno(), far_maker.fileno(), netns)
            argv = [str(launcher_path()), "join", *map(str, fds)]
            helper = subprocess.Popen(argv, pass_fds=fds, stdin=subprocess.DEVNULL)
    except BaseException:
        control.close()
        maker.close()
        raise
    guest = Joined(control, maker, helper)
    try:
        _begun(control)
    except BaseException:
        guest.close()
        raise
    return guest


def _begun(control: socket.socket) -> None:
    data = control.recv(MESSAGE.size)
    if len(data) != MESSAGE.size:
        raise LaunchError("launcher", 32)
    kind, stage, error, _ = MESSAGE.unpack(data)
    if chr(kind) == "F":
        raise LaunchError(STAGES[stage], error)


def terms(filter: bytes, landlock: bool) -> int:
    """A memfd with what the first step in a container is to install (native/init/container.c)."""
    fd = os.memfd_create("xensock-terms", os.MFD_CLOEXEC)
    os.write(fd, struct.pack("=4I", TERMS_MAGIC, LANDLOCK if landlock else 0, len(filter) // 8, 0))
    os.write(fd, filter)
    return fd
