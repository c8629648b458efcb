"""The kernel's features tried in child processes, which take all they made with them.

A probe never changes the process that asks. Its outcome is a list of stages with the errno of each:
0 where it worked, and no entry for stages that could not be reached.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import struct
import tempfile
from typing import TYPE_CHECKING

from xensock.doctor import kernel, netlink

if TYPE_CHECKING:
    from collections.abc import Callable

    Action = Callable[[], object]
    # Tries an action, reports how it went under the name of its stage, says whether it worked.
    Attempt = Callable[[str, Action], bool]

Outcome = dict[str, int]

# Seconds. A probe takes milliseconds; one that hangs is an answer too.
PATIENCE = 10


def _in_child(work: Callable[[Attempt], object]) -> Outcome:
    """Run `work(attempt)` in a forked child; `attempt(stage, action)` reports how it went."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:

        def attempt(stage: str, action: Action) -> bool:
            error = 0
            try:
                action()
            except OSError as problem:
                error = problem.errno or errno.EIO
            os.write(writer, struct.pack("16si", stage.encode(), error))
            return error == 0

        try:
            os.close(reader)
            work(attempt)
        finally:
            os._exit(0)
    os.close(writer)
    try:
        return _read_outcome(reader)
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _read_outcome(reader: int) -> Outcome:
    outcome: Outcome = {}
    while select.select([reader], [], [], PATIENCE)[0]:
        entry = os.read(reader, 20)
        if not entry:
            return outcome
        name, error = struct.unpack("16si", entry)
        outcome[name.rstrip(b"\0").decode()] = error
    outcome["timeout"] = errno.ETIMEDOUT
    return outcome


def enter_user_namespace(attempt: Attempt) -> bool:
    """As the launcher does for callers other than root: their own uid, mapped to itself."""
    uid, gid = os.geteuid(), os.getegid()

    def write_maps() -> None:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)

    return attempt("userns", lambda: kernel.unshare(kernel.CLONE_NEWUSER)) and attempt(
        "uidmap", write_maps
    )


def user_namespace() -> Outcome:
    """Stages userns and uidmap."""
    return _in_child(enter_user_namespace)


def guest() -> Outcome:
    """Stages userns, uidmap (unless root), netns, mountns, pidns, proc, sysfs, veth, route."""
    return _in_child(_guest)


def _guest(attempt: Attempt) -> None:
    if os.geteuid() != 0 and not enter_user_namespace(attempt):
        return
    in_network = attempt("netns", lambda: kernel.unshare(kernel.CLONE_NEWNET))
    if attempt("mountns", lambda: kernel.unshare(kernel.CLONE_NEWNS)) and attempt(
        "pidns", lambda: kernel.unshare(kernel.CLONE_NEWPID)
    ):
        # A process enters a PID namespace by being born in it.
        child = os.fork()
        if child == 0:
            try:
                _guest_files(attempt, in_network=in_network)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    if in_network:
        _guest_network(attempt)


def _guest_files(attempt: Attempt, *, in_network: bool) -> None:
    private = kernel.MS_REC | kernel.MS_PRIVATE
    if not attempt("private", lambda: kernel.mount("none", "/", None, private)):
        return
    # Mounted over this directory inside the namespace only: nothing to unmount.
    where = tempfile.gettempdir()
    attempt("proc", lambda: kernel.mount("proc", where, "proc"))
    if in_network:
        attempt("sysfs", lambda: kernel.mount("sysfs", where, "sysfs"))


def _guest_network(attempt: Attempt) -> None:
    def interface() -> None:
        try:
            netlink.add_veth("xs0", "xs1")
        except OSError:
            netlink.add_dummy("xs0")

    def every_address_is_here() -> None:
        netlink.loopback_up()
        netlink.all_addresses_local()
        with (
            socket.create_server(("0.0.0.0", 0)) as server,
            socket.socket() as client,
        ):
            client.settimeout(PATIENCE)
            client.connect(("198.51.100.7", server.getsockname()[1]))

    attempt("veth", interface)
    attempt("route", every_address_is_here)


def supervision() -> Outcome:
    """Stages seccomp, getfd, memory, notify, addfd: what the backend does to a guest's calls."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = os.fork()
        if child == 0:
            try:
                ours.close()
                _supervised(theirs)
            finally:
                os._exit(0)
        theirs.close()
        ours.settimeout(PATIENCE)
        try:
            return _supervise(ours, child)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _supervised(channel: socket.socket) -> None:
    """The child: report the listener and an address to read, then make the trapped call."""
    secret = os.urandom(16)
    if os.geteuid() != 0:
        # The real guest lives in one; the kernel's rules for its supervisor depend on it.
        enter_user_namespace(lambda _, action: _works(action))
    kept = ctypes.create_string_buffer(secret, len(secret))
    error = listener = 0
    try:
        kernel.no_new_privs()
        listener = kernel.notify_on(kernel.NUMBERS["getpgid"])
    except OSError as problem:
        error = problem.errno or errno.EIO
    address = ctypes.addressof(kept)
    channel.sendall(struct.pack("iiQ16s", error, listener, address, secret))
    if error or not channel.recv(1):
        return
    fd = kernel.trapped_call()
    os.write(fd, secret)


def _works(action: Action) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def _supervise(channel: socket.socket, child: int) -> Outcome:
    outcome: Outcome = {}

    def attempt(stage: str, action: Callable[[], int]) -> int:
        outcome[stage] = 0
        try:
            return action()
        except OSError as problem:
            outcome[stage] = problem.errno or errno.EIO
            return -1

    message = channel.recv(struct.calcsize("iiQ16s"), socket.MSG_WAITALL)
    if len(message) < struct.calcsize("iiQ16s"):
        return {"seccomp": errno.EIO}
    error, theirs, address, secret = struct.unpack("iiQ16s", message)
    outcome["seccomp"] = error
    if error:
        return outcome

    def read_back() -> int:
        if kernel.read_memory(child, address, len(secret)) != secret:
            raise OSError(errno.EFAULT, "other bytes")
        return 0

    attempt("memory", read_back)
    pidfd = os.pidfd_open(child)
    try:
        listener = attempt("getfd", lambda: kernel.pidfd_getfd(pidfd, theirs))
    finally:
        os.close(pidfd)
    if listener < 0:
        return outcome
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        channel.send(b"g")
        if not select.select([listener], [], [], PATIENCE)[0]:
            outcome["notify"] = errno.ETIMEDOUT
            return outcome
        identity = attempt("notify", lambda: kernel.receive_notification(listener))
        if outcome["notify"] == 0:
            attempt("addfd", lambda: _give(listener, identity, writer, reader, secret))
        return outcome
    finally:
        for fd in (listener, reader, writer):
            os.close(fd)


def _give(listener: int, identity: int, writer: int, reader: int, secret: bytes) -> int:
    """Answer with the writing end of a pipe, and see that what the child writes arrives."""
    kernel.answer_with_fd(listener, identity, writer)
    if not select.select([reader], [], [], PATIENCE)[0] or os.read(reader, 16) != secret:
        raise OSError(errno.EIO, "the child did not get the descriptor")
    return 0


def landlock() -> tuple[int, int]:
    """The Landlock ABI and 0, or 0 and the errno for lack of it or of its effect."""
    try:
        abi = kernel.landlock_abi()
    except OSError as problem:
        return 0, problem.errno or errno.EIO
    if abi < 4:
        return abi, 0
    outcome = _in_child(lambda attempt: attempt("landlock", _refused))
    return abi, outcome.get("landlock", errno.EIO)


def _refused() -> None:
    kernel.no_new_privs()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        kernel.landlock_refuse_tcp()
        try:
            client.connect(server.getsockname())
        except PermissionError:
            return
    raise OSError(errno.EIO, "a connection that should have been refused was made")


def netns_cookie() -> int:
    """0, or the errno of SO_NETNS_COOKIE (socket(7))."""
    with socket.socket() as probe:
        try:
            probe.getsockopt(socket.SOL_SOCKET, kernel.SO_NETNS_COOKIE, 8)
        except OSError as problem:
            return problem.errno or errno.EIO
    return 0


def sock_diag() -> int:
    """0, or the errno of a look at the sockets of TCP (sock_diag(7))."""
    try:
        netlink.look_at_sockets()
    except OSError as problem:
        return problem.errno or errno.EIO
    return 0
