"""Starting a guest: the launcher, its messages, sockets of the guest's network.

The launcher is the C program native/init; numbers here are those of native/init/init.h. Every failure is a
`LaunchError` with the stage and the errno, which `xensock doctor` explains.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL
from typing import TYPE_CHECKING

from xensock.supervisor import rtnetlink
from xensock.supervisor.guest import MESSAGE, Guest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAGIC = 0x58534331
USERNS, LANDLOCK, DROP_CAPS, PING = 1, 2, 4, 8
STAGES = (
    "", "config", "userns", "uidmap", "netns", "pidns", "fork", "pidfd",
    "mountns", "proc", "sysfs", "hide", "caps", "landlock", "seccomp",
)  # fmt: skip


class LaunchError(Exception):
    """The guest could not be made: where, and the errno."""

    def __init__(self, stage: str, error: int) -> None:
        super().__init__(f"{stage}: {os.strerror(error)}")
        self.stage = stage
        self.errno = error


class ExecError(Exception):
    """The program could not be executed (execve(2)); `errno` says why."""

    def __init__(self, program: str, error: int) -> None:
        super().__init__(f"{program}: {os.strerror(error)}")
        self.program = program
        self.errno = error


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start. `group`: process group of the job it belongs to, 0 for the caller's own. `ping`: ping sockets.
    `unix_datagrams`: whether it may inherit unix sockets that send them."""

    argv: Sequence[str]
    filter: bytes
    hide: Sequence[str] = ()
    group: int = 0
    landlock: bool = True
    ping: bool = False
    unix_datagrams: bool = True
    env: Mapping[str, str] | None = None
    forced_failure: tuple[str, int] | None = field(default=None)


def launcher_path() -> Path:
    """The launcher beside the C core. Raises LaunchError("launcher", ENOENT) where it was not built."""
    from xensock import _core

    path = Path(str(_core.__file__)).with_name("xensock-init")
    if not os.access(path, os.X_OK):
        raise LaunchError("launcher", errno.ENOENT)
    return path


def _config(spec: Launch, root: bool) -> bytes:
    flags = (LANDLOCK if spec.landlock else 0) | (DROP_CAPS if root else USERNS)
    flags |= PING if spec.ping else 0
    stage, number = spec.forced_failure or ("", 0)
    head = struct.pack(
        "=10I",
        MAGIC,
        flags,
        os.geteuid(),
        os.getegid(),
        spec.group,
        STAGES.index(stage) if stage in STAGES else 0,
        number,
        len(spec.filter) // 8,
        len(spec.hide),
        len(spec.argv),
    )
    strings = b"".join(os.fsencode(s) + b"\0" for s in (*spec.hide, *spec.argv))
    return head + spec.filter + strings


class Launched(Guest):
    """A guest that `start` made: events from its launcher."""

    def __init__(
        self, control: socket.socket, maker: socket.socket, helper: subprocess.Popen[bytes]
    ) -> None:
        super().__init__(maker, init="1")
        self._control = control
        self.helper = helper

    def next_event(self) -> tuple[str, int, int, list[int]] | None:
        """The launcher's next message (type, a, b, descriptors); None at its end."""
        data, fds, _, _ = socket.recv_fds(self._control, MESSAGE.size, 3)
        if len(data) != MESSAGE.size:
            return None
        for fd in fds:
            os.set_inheritable(fd, False)
        kind, a, b, _ = MESSAGE.unpack(data)
        return chr(kind), a, b, array.array("i", fds).tolist()

    def control_fileno(self) -> int:
        """Readable when `next_event` has something."""
        return self._control.fileno()

    def go(self) -> None:
        self._control.send(MESSAGE.pack(ord("G"), 0, 0, 0))

    def signal(self, number: int) -> None:
        """Send a signal to the program; nothing happens once it is gone."""
        import signal

        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return

    def close(self) -> None:
        """End the guest, whatever still runs in it, and release everything."""
        self._control.close()
        self.helper.wait()
        self.release()


def start(spec: Launch) -> Launched:
    """Make the guest and start the program. Raises LaunchError, or ExecError if the program cannot be executed."""
    path = launcher_path()
    root = os.geteuid() == 0
    control, far_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    maker, far_maker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    config = os.memfd_create("xensock-config", 0)
    with far_control, far_maker:
        try:
            _write_all(config, _config(spec, root))
            for fd in (far_control.fileno(), far_maker.fileno()):
                os.set_inheritable(fd, True)
            argv = [
                str(path),
                *(str(fd) for fd in (far_control.fileno(), far_maker.fileno(), config)),
            ]
            kept_back = _withhold(spec.unix_datagrams)
            # Other descriptors that the caller was given stay the program's, as natively.
            stdin, stdout, stderr = (DEVNULL if n in kept_back else None for n in range(3))
            helper = subprocess.Popen(
                argv, stdin=stdin, stdout=stdout, stderr=stderr, close_fds=False, env=spec.env
            )
        except OSError as error:
            control.close()
            maker.close()
            raise LaunchError("fork", error.errno or errno.EIO) from error
        finally:
            os.close(config)
    guest = Launched(control, maker, helper)
    try:
        _bring_up(guest, spec.forced_failure)
    except BaseException:
        guest.close()
        raise
    return guest


def _withhold(unix_datagrams: bool) -> set[int]:
    """Let the guest inherit no io_uring: a kernel thread (io_uring_setup(2), SQPOLL) makes its calls with the rights of
    whoever made it, and no filter is asked. And no unix sockets for datagrams, where it is to have none.

    The numbers of what it will not have.
    """
    found = set()
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        with suppress(OSError):  # listdir's own
            what = os.readlink(f"/proc/self/fd/{name}")
            withheld = what == "anon_inode:[io_uring]"
            if not unix_datagrams and what.startswith("socket:"):
                withheld = _sends_unix_datagrams(number)
            if withheld:
                os.set_inheritable(number, False)
                found.add(number)
    return found


def _sends_unix_datagrams(number: int) -> bool:
    """Whether a socket does. Raises OSError."""
    with socket.socket(fileno=os.dup(number)) as sock:
        return sock.family == socket.AF_UNIX and sock.type == socket.SOCK_DGRAM


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _bring_up(guest: Launched, forced: tuple[str, int] | None) -> None:
    while guest.listener < 0:
        event = guest.next_event()
        if event is None:
            raise LaunchError("launcher", errno.EPIPE)
        kind, a, b, fds = event
        if kind == "F":
            raise LaunchError(STAGES[a], b)
        if kind == "R":
            _network(guest, forced)
            guest.go()
        elif kind == "L":
            guest.listener, guest.pidfd, guest.proc = fds
            guest.killable = bool(a)


def _network(guest: Launched, forced: tuple[str, int] | None) -> None:
    if forced and forced[0] == "veth":
        raise LaunchError(*forced)
    try:
        with guest.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
            rtnetlink.lay_out(link, rtnetlink.host_has_ipv6())
    except OSError as error:
        raise LaunchError("veth", error.errno or errno.EIO) from error
