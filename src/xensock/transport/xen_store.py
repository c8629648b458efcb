"""xenstore: a domain's nodes, read and written through libxenstore (docs/misc/xenstore.txt of Xen)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import threading
from typing import TYPE_CHECKING

from xensock.transport import xen_libs
from xensock.transport.base import TransportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

LONGEST_VALUE = 4096
"""XENSTORE_PAYLOAD_MAX: no value is longer."""
NO_TRANSACTION = 0


class Store:
    """A connection to xenstored. Methods may be called from any thread, and wait for its answers; it is trusted.

    Relative paths are below the own domain's directory.
    """

    def __init__(self) -> None:
        """Raises TransportError: no libraries, or this is no Xen domain, or no right to use xenstore."""
        self._library = xen_libs.store()
        self._handle = self._library.xs_open(0)
        if not self._handle:
            error = xen_libs.failure("xenstore cannot be reached")
            raise TransportError(error.errno, str(error.strerror))
        self._lock = threading.Lock()

    def read(self, path: str, transaction: int = NO_TRANSACTION) -> str | None:
        """A node's value, None when there is none. Raises OSError (EACCES)."""
        length = ctypes.c_uint()
        value = self._library.xs_read(
            self._open(), transaction, path.encode(), ctypes.byref(length)
        )
        if not value:
            if ctypes.get_errno() == errno.ENOENT:
                return None
            raise xen_libs.failure(f"cannot read {path}")
        try:
            raw = ctypes.string_at(value, min(length.value, LONGEST_VALUE))
        finally:
            xen_libs.free(value)
        return raw.decode("ascii", "replace")

    def names(self, path: str) -> list[str]:
        """The nodes directly below; none when there is no such path."""
        count = ctypes.c_uint()
        found = self._library.xs_directory(
            self._open(), NO_TRANSACTION, path.encode(), ctypes.byref(count)
        )
        if not found:
            return []
        try:
            return [
                (found[index] or b"").decode("ascii", "replace") for index in range(count.value)
            ]
        finally:
            xen_libs.free(ctypes.cast(found, ctypes.c_void_p).value)

    def tree(self, path: str, most: int) -> dict[str, str]:
        """The values directly below a path, at most so many of them."""
        found = {}
        for name in self.names(path)[:most]:
            value = self.read(f"{path}/{name}")
            if value is not None:
                found[name] = value
        return found

    def write(
        self, path: str, values: Mapping[str, str], *, only_if: tuple[str, str] | None = None
    ) -> None:
        """Write nodes below a path in one transaction, `only_if` a node there has that value. Raises OSError; ENOENT:
        the path is gone, ESTALE: the node has another value."""
        while True:
            with self._transaction() as number:
                # Writing would make the directory again after the toolstack has removed it.
                if self.read(path, number) is None:
                    raise OSError(errno.ENOENT, f"{path} is gone")
                if only_if and self.read(f"{path}/{only_if[0]}", number) != only_if[1]:
                    raise OSError(errno.ESTALE, f"{path}/{only_if[0]} is another's")
                for name, value in values.items():
                    raw = value.encode("ascii")
                    whole = f"{path}/{name}".encode()
                    if not self._library.xs_write(self._open(), number, whole, raw, len(raw)):
                        raise xen_libs.failure(f"cannot write {path}/{name}")
                if self._library.xs_transaction_end(self._open(), number, False):
                    return
                if ctypes.get_errno() != errno.EAGAIN:  # somebody else wrote meanwhile
                    raise xen_libs.failure(f"cannot write {path}")

    def remove(self, path: str, names: Iterable[str]) -> None:
        """Remove nodes below a path. Raises OSError."""
        for name in names:
            whole = f"{path}/{name}".encode()
            done = self._library.xs_rm(self._open(), NO_TRANSACTION, whole)
            if not done and ctypes.get_errno() != errno.ENOENT:
                raise xen_libs.failure(f"cannot remove {path}/{name}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[int]:
        number = int(self._library.xs_transaction_start(self._open()))
        if not number:
            raise xen_libs.failure("no transaction")
        try:
            yield number
        except BaseException:
            self._library.xs_transaction_end(self._open(), number, True)
            raise

    def watch(self, path: str, token: str) -> None:
        """Be told of changes at and below a path, and once now. Raises OSError."""
        if not self._library.xs_watch(self._open(), path.encode(), token.encode()):
            raise xen_libs.failure(f"cannot watch {path}")

    def unwatch(self, path: str, token: str) -> None:
        """The opposite; whatever it says."""
        self._library.xs_unwatch(self._open(), path.encode(), token.encode())

    def fileno(self) -> int:
        """Readable while `changed()` has something; -1 after `close()`."""
        return int(self._library.xs_fileno(self._handle)) if self._handle else -1

    def changed(self) -> str | None:
        """The token of the next change, None when there is none (now). Does not wait."""
        found = self._library.xs_check_watch(self._open())
        if not found:
            return None
        try:
            return (found[1] or b"").decode("ascii", "replace")
        finally:
            xen_libs.free(ctypes.cast(found, ctypes.c_void_p).value)

    def path_of(self, domain: int) -> str:
        """A domain's directory."""
        found = self._library.xs_get_domain_path(self._open(), domain)
        if not found:
            raise xen_libs.failure(f"no path of domain {domain}")
        try:
            return ctypes.string_at(found).decode("ascii")
        finally:
            xen_libs.free(found)

    def own_domain(self) -> int:
        """The number of the domain that this runs in. Raises TransportError where xenstore does not say."""
        text = self.read("domid")
        if text is None or not text.isdigit():
            raise TransportError(errno.ENODEV, "xenstore does not say which domain this is")
        return int(text)

    def close(self) -> None:
        """Let go. Idempotent."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle:
            self._library.xs_close(handle)

    def _open(self) -> int:
        if not self._handle:
            raise TransportError(errno.ENOTCONN, "the connection to xenstore was closed")
        return int(self._handle)
