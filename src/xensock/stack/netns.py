"""The stack that is another network namespace of this host: a thread that entered it hands out its sockets."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor

from xensock.stack.kernel import Kernel
from xensock.stack.resolver import Resolver

CLONE_NEWNET = 0x40000000
_CONFIGURED = "/etc/netns"  # where ip-netns(8) has the files of a namespace


class RightsError(PermissionError):
    """A namespace is there, and this process may not enter it."""

    def __init__(self, path: str, number: int) -> None:
        super().__init__(number, os.strerror(number), path)


class Netns(Kernel):
    """Sockets of the namespace at `path`, called `name`.

    Raises RightsError where this process may not enter it (setns(2): CAP_SYS_ADMIN), OSError where nothing is there.
    """

    here = False

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError as error:
            raise RightsError(path, error.errno or errno.EACCES) from error
        # Sockets belong to the namespace of the thread that makes them; nothing else is done there.
        self._thread = ThreadPoolExecutor(1, f"xs-netns-{name}")
        try:
            self._thread.submit(self._enter).result()
        except BaseException:
            self.close()
            raise

    def _enter(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(self._fd, CLONE_NEWNET):
            number = ctypes.get_errno()
            if number == errno.EPERM:
                raise RightsError(self.path, number)
            raise OSError(number, "not a network namespace", self.path)

    @property
    def gone(self) -> bool:
        """Whether another namespace, or none, is at its path now: a VPN that was started again, for instance."""
        try:
            now = os.stat(self.path)
            return not os.path.samestat(now, os.fstat(self._fd))
        except OSError:
            return True

    def make(self, family: int, type: int, protocol: int) -> socket.socket:
        """A socket of the namespace. Raises OSError."""
        try:
            return self._thread.submit(socket.socket, family, type, protocol).result()
        except RuntimeError as error:  # it was closed
            raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN)) from error

    def resolver(self, resolv_conf: str = "") -> Resolver:
        """Asks the servers of the namespace's resolv.conf(5), by its sockets; the hosts file comes first."""
        own = os.path.join(_CONFIGURED, os.path.basename(self.path))
        return Resolver(
            resolv_conf or _first(f"{own}/resolv.conf", "/etc/resolv.conf"),
            _first(f"{own}/hosts", "/etc/hosts"),
            _first(f"{own}/nsswitch.conf", "/etc/nsswitch.conf"),
            ask=_unknown,
            make_socket=self.make,
        )

    def close(self, patience: float = 0) -> None:
        """Leave it. Sockets that were made stay."""
        self._thread.shutdown()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _first(*paths: str) -> str:
    return next((path for path in paths if os.path.exists(path)), paths[-1])


def _unknown(name: str) -> tuple[()]:
    """This host's name service switch asks by this host's network: it says nothing of another one."""
    raise OSError(errno.ENOENT, name)
