"""Host ports that a guest listens on, and the one rule the kernel does not know: SO_REUSEPORT ends at the guest.

The kernel lets sockets of one user share a port when all set SO_REUSEPORT, and to it all guests of a user are one. So
before such a bind the kernel is asked who holds the port: listeners, and since Linux 6.8 sockets that are only bound.
On older kernels a probe without the option is bound, which fails if anybody holds the port. What that cannot tell
apart: ended connections (TIME_WAIT) of a server without SO_REUSEADDR hold the port for the next guest, as without
SO_REUSEPORT; a socket that another guest has bound with both options but does not listen on yet does not. A lock file
makes looking and binding one step among this user's backends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import tempfile
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.supervisor.diag import TCP_LISTEN, Diag, cookie
from xensock.supervisor.options import freebind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.calls.address import IPAddress


class Ports:
    """Ports of one guest. Used by one thread."""

    def __init__(self, host: Diag) -> None:
        self._host = host
        self._listening: dict[
            int, Endpoint
        ] = {}  # by cookie: a port is the guest's as long as that socket lives
        self._shared: dict[int, set[int]] = {}  # port → cookies bound with SO_REUSEPORT

    def listens(self, sock: socket.socket, local: Endpoint) -> None:
        self._listening[cookie(sock)] = local
        if len(self._listening) > 4096:
            self._forget()

    def adopt(self, inodes: set[int]) -> None:
        """Take what the host's sockets among these have for this guest's. Raises OSError."""
        for each in self._host.held():
            if each.inode in inodes:
                self._shared.setdefault(each.port, set()).add(each.cookie)
        for each in self._host.held(states=1 << TCP_LISTEN):
            if each.inode in inodes:
                self._listening[each.cookie] = Endpoint(each.host, each.port)

    def is_listening(self, sock: socket.socket) -> bool:
        return cookie(sock) in self._listening

    def shut(self, sock: socket.socket) -> None:
        """It listens no more. From any thread."""
        self._listening.pop(cookie(sock), None)

    def has(self, key: int) -> bool:
        """Whether the host's socket with this cookie is a listener of this guest's."""
        return key in self._listening

    def owner(self, at: Endpoint) -> bool:
        """Whether a connection of the host to `at` would reach this guest's own listener."""
        if not self._listening:
            return False
        found = self._host.listener(at.host, at.port)
        return found is not None and found in self._listening

    def bind(self, sock: socket.socket, local: Endpoint) -> None:
        """bind(2) for the guest. Raises OSError."""
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
            # Asked of a socket of ours first: on the guest's another thread may set that option now.
            if local.port and not self._free(sock, local):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            sock.bind(local.as_python())
            return
        with _one_at_a_time():
            if local.port and self._taken(sock, local):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            sock.bind(local.as_python())
        self._shared.setdefault(sock.getsockname()[1], set()).add(cookie(sock))

    def _taken(self, sock: socket.socket, local: Endpoint) -> bool:
        """Whether anybody but this guest holds the port where this bind would."""
        if not self._host.shows_bound():
            return not self._free(sock, local) and not self._only_ours(local)
        held = self._host.held(local.port)
        shared = self._shared.get(local.port, set())
        shared &= {each.cookie for each in held}
        only = sock.family == socket.AF_INET6 and bool(
            sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        )
        return any(
            each.cookie not in shared and each.cookie not in self._listening
            for each in held
            if _meet(local.host, only, each.host, each.v6only)
        )

    def _free(self, like: socket.socket, local: Endpoint) -> bool:
        with socket.socket(like.family, like.type & 0xF, 0) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if like.family == socket.AF_INET6:
                only = like.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            name = freebind(like.family)
            probe.setsockopt(*name, like.getsockopt(*name))
            try:
                probe.bind(local.as_python())
            except OSError as error:
                return error.errno != errno.EADDRINUSE  # what else is wrong, the bind itself says
        return True

    def _only_ours(self, local: Endpoint) -> bool:
        if local.port not in self._shared:
            return False
        found = self._host.listener(local.host, local.port)
        return found is None or found in self._shared[local.port] or found in self._listening

    def _forget(self) -> None:
        """Drop entries whose socket no longer listens."""
        for key, local in list(self._listening.items()):
            if self._host.listener(local.host, local.port) != key:
                del self._listening[key]


def _meet(one: IPAddress, one_only: bool, other: IPAddress, other_only: bool) -> bool:
    """Whether sockets bound to two addresses, of IPV6_V6ONLY so, get in each other's way on one port."""
    one, other = (Endpoint(host, 0).unmapped().host for host in (one, other))
    if one.version == other.version:
        return one == other or one.is_unspecified or other.is_unspecified
    six, only = (one, one_only) if one.version == 6 else (other, other_only)
    return six.is_unspecified and not only


class ForeignPorts(Ports):
    """Ports at another backend, which keeps guests apart by itself."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[weakref.ref[socket.socket], Endpoint]] = {}

    def listens(self, sock: socket.socket, local: Endpoint) -> None:
        """See Ports."""
        self._open = {key: held for key, held in self._open.items() if _is_open(held[0])}
        self._open[id(sock)] = (weakref.ref(sock), local)

    def adopt(self, inodes: set[int]) -> None:
        """Nothing: these sockets are this process's alone, and end with it."""

    def is_listening(self, sock: socket.socket) -> bool:
        """See Ports."""
        held = self._open.get(id(sock))
        return held is not None and held[0]() is sock

    def owner(self, at: Endpoint) -> bool:
        """Whether a listener of this guest has this address, or every address, and the port."""
        return any(
            _is_open(sock)
            and local.port == at.port
            and (local.host.is_unspecified or local.host == at.host)
            for sock, local in self._open.values()
        )

    def bind(self, sock: socket.socket, local: Endpoint) -> None:
        """See Ports."""
        sock.bind(local.as_python())


def _is_open(held: weakref.ref[socket.socket]) -> bool:
    sock = held()
    return sock is not None and sock.fileno() >= 0


def runtime_directory() -> Path:
    """$XDG_RUNTIME_DIR/xensock, /run/xensock for root, else a private directory in the temporary one; made 0700."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    if base and os.path.isdir(base) and os.stat(base).st_uid == os.geteuid():
        path = Path(base) / "xensock"
    elif os.geteuid() == 0 and os.access("/run", os.W_OK):
        path = Path("/run/xensock")
    else:
        path = Path(tempfile.gettempdir()) / f"xensock-{os.geteuid()}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    state = path.lstat()
    if state.st_uid != os.geteuid() or not path.is_dir() or path.is_symlink():
        raise PermissionError(errno.EPERM, "belongs to somebody else", str(path))
    return path


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    with open(runtime_directory() / "ports.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
