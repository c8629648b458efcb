"""Pages that a Xen domain grants to another: the frontend's (gntalloc) and the backend's mappings of them (gntdev).

A grant cannot be taken back while it is mapped, nor does the page vanish with its domain, so that nothing a frontend
does makes an access of the backend fail.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
import weakref
from typing import TYPE_CHECKING

from xensock.transport import xen_libs
from xensock.transport.base import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_READ_WRITE = 3  # PROT_READ | PROT_WRITE of mmap(2)


def _view(address: int, pages: int, done: Callable[[], object]) -> memoryview:
    """Memory at an address; done() is called once when no view of it is left."""
    array = (ctypes.c_char * (pages * PAGE)).from_address(address)
    weakref.finalize(array, done).atexit = False
    return memoryview(array).cast("B")


class Allowance:
    """How many of something one domain may have at a time, all its devices together. For any thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._lock = threading.Lock()

    def take(self, count: int = 1) -> bool:
        """Take so many more; False, and none, where that would be too many."""
        with self._lock:
            if self.used + count > self.limit:
                return False
            self.used += count
            return True

    def give(self, count: int = 1) -> None:
        """Give back what was taken."""
        with self._lock:
            self.used -= count


class Mappings:
    """The backend's side, for one device: pages of its domain's allowance. For one thread; views may end on any."""

    def __init__(self, domain: int, allowance: Allowance) -> None:
        """Raises OSError."""
        self._library = xen_libs.grants()
        self._handle = self._library.xengnttab_open(xen_libs.quiet(), 0)
        if not self._handle:
            raise xen_libs.failure("grants cannot be mapped (/dev/xen/gntdev)")
        self._domain = domain
        self._allowance = allowance
        self._lock = threading.Lock()
        self._pages = 0
        self._closing = False

    def map(self, refs: Sequence[int]) -> memoryview:
        """These pages of the domain, in this order. Raises OSError: EINVAL, ENOMEM, ENOSPC for the limit."""
        count = len(refs)
        with self._lock:
            if self._closing:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            if not self._allowance.take(count):
                raise OSError(errno.ENOSPC, f"more than {self._allowance.limit} pages")
            self._pages += count
        array = (ctypes.c_uint32 * count)(*refs)
        address = self._library.xengnttab_map_domain_grant_refs(
            self._handle, count, self._domain, array, _READ_WRITE
        )
        if not address:
            error = xen_libs.failure("grants")
            self._ended(count)
            raise error
        return _view(address, count, lambda: self._unmap(address, count))

    def _unmap(self, address: int, count: int) -> None:
        self._library.xengnttab_unmap(self._handle, address, count)
        self._ended(count)

    def _ended(self, count: int) -> None:
        self._allowance.give(count)
        with self._lock:
            self._pages -= count
            last = self._closing and not self._pages
        if last:
            self._library.xengnttab_close(self._handle)

    def close(self) -> None:
        """Map no more. What is mapped stays until its views are gone. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            last = not self._pages
        if last:
            self._library.xengnttab_close(self._handle)


class Shared:
    """An allocation of the frontend (`transport.base.Pages`)."""

    def __init__(self, memory: memoryview, refs: tuple[int, ...]) -> None:
        self._memory: memoryview | None = memory
        self.refs = refs

    @property
    def memory(self) -> memoryview:
        """The pages. Raises ValueError after `free()`."""
        if self._memory is None:
            raise ValueError("the pages were freed")
        return self._memory

    def free(self) -> None:
        """The backend has let go of them: they are taken back once nobody here looks at them either."""
        memory, self._memory = self._memory, None
        if memory is not None:
            with contextlib.suppress(BufferError):
                memory.release()


class Grants:
    """The frontend's side: pages of ours that one domain may map. For any thread."""

    def __init__(self, domain: int) -> None:
        """Raises OSError."""
        self._library = xen_libs.grants()
        self._handle = self._library.xengntshr_open(None, 0)
        if not self._handle:
            raise xen_libs.failure("pages cannot be granted (/dev/xen/gntalloc)")
        self._domain = domain
        self._lock = threading.Lock()
        self._runs = 0
        self._closing = False

    def allocate(self, pages: int) -> Shared:
        """Grant zeroed pages. Raises OSError; ENOSPC: the kernel's limit (parameter `limit` of xen_gntalloc)."""
        if pages < 1:
            raise OSError(errno.EINVAL, "no pages to allocate")
        refs = (ctypes.c_uint32 * pages)()
        with self._lock:
            if self._closing:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            self._runs += 1
        address = self._library.xengntshr_share_pages(self._handle, self._domain, pages, refs, 1)
        if not address:
            error = xen_libs.failure("cannot grant pages")
            self._ended()
            raise error
        return Shared(_view(address, pages, lambda: self._unshare(address, pages)), tuple(refs))

    def _unshare(self, address: int, pages: int) -> None:
        # The kernel keeps a page that the backend still maps until it has let go.
        self._library.xengntshr_unshare(self._handle, address, pages)
        self._ended()

    def _ended(self) -> None:
        with self._lock:
            self._runs -= 1
            last = self._closing and not self._runs
        if last:
            self._library.xengntshr_close(self._handle)

    def close(self) -> None:
        """Grant no more. Pages that somebody looks at stay until then. Idempotent."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            last = not self._runs
        if last:
            self._library.xengntshr_close(self._handle)
