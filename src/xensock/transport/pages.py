"""A frontend's pages: regions of shared memory, and the runs of them that are handed out.

Every allocation is a run of adjacent pages, so that the backend maps it in one piece, and a mapping
of its own: when the last view of it is gone nobody here can write to its pages any more, and the
run is used anew once the backend has let go of it too (`Pages.free`).
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import fcntl
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING

from xensock import _core
from xensock.transport.base import PAGE, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

SMALLEST, LARGEST = 256, 4096
"""Pages of a region, unless a single allocation needs more: they grow with what is in use."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MFD_NOEXEC_SEAL = 8  # Linux 6.3; where vm.memfd_noexec is 2 memory without it is refused


def make_memory(pages: int) -> int:
    """A memfd of this many zeroed pages, sealed as a backend wants it. Raises OSError."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("xensock", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("xensock", flags)
    try:
        os.ftruncate(fd, pages * PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


class _Region:
    """One memfd; `free` are its free runs as (offset, pages, never used), sorted, not adjacent
    unless their last part differs."""

    def __init__(self, fd: int, first: int, pages: int) -> None:
        self.fd = fd
        self.first = first
        self.pages = pages
        self.free: list[tuple[int, int, bool]] = [(0, pages, True)]
        self.used = 0

    def take(self, pages: int) -> tuple[int, bool] | None:
        """The offset of a run, and whether its pages were never used."""
        for index, (offset, length, fresh) in enumerate(self.free):
            if length >= pages:
                rest = [(offset + pages, length - pages, fresh)] if length > pages else []
                self.free[index : index + 1] = rest
                self.used += pages
                return offset, fresh
        return None

    def give(self, offset: int, pages: int) -> None:
        self.used -= pages
        index = bisect.bisect(self.free, (offset, 0, False))
        if index < len(self.free):
            after, length, fresh = self.free[index]
            if after == offset + pages and not fresh:
                pages += length
                del self.free[index]
        if index:
            before, length, fresh = self.free[index - 1]
            if before + length == offset and not fresh:
                offset, pages = before, length + pages
                del self.free[index - 1]
                index -= 1
        self.free.insert(index, (offset, pages, False))


class Run:
    """An allocation (`transport.base.Pages`)."""

    def __init__(
        self, memory: memoryview, refs: tuple[int, ...], freed: Callable[[], None]
    ) -> None:
        self._memory: memoryview | None = memory
        self._refs = refs
        self._freed = freed

    @property
    def memory(self) -> memoryview:
        """The pages. Raises ValueError after `free()`."""
        if self._memory is None:
            raise ValueError("the pages were freed")
        return self._memory

    @property
    def refs(self) -> tuple[int, ...]:
        """Their grant references."""
        return self._refs

    def free(self) -> None:
        """The backend has let go of them."""
        memory, self._memory = self._memory, None
        if memory is not None:
            self._freed()
            with contextlib.suppress(BufferError):  # a ring is still looking: its end frees them
                memory.release()


class Pool:
    """All regions of a session. `grant(first, pages, fd)` tells the backend of a new one,
    `withdraw(first)` that one is no longer in use; both may raise OSError. For any thread."""

    def __init__(
        self,
        grant: Callable[[int, int, int], None],
        withdraw: Callable[[int], None],
        limits: Limits | None = None,
    ) -> None:
        self._grant = grant
        self._withdraw = withdraw
        self._limits = Limits() if limits is None else limits
        self._lock = threading.Lock()
        self._regions: list[_Region] = []
        self._next = 1
        self._closed = False
        # Filled wherever a mapping ends, perhaps by a garbage collection that holds the lock.
        self._returned: deque[tuple[_Region, int, int]] = deque()
        self._watched: dict[weakref.ref[_core.PageMap], tuple[_Region, int, int, list[bool]]] = {}

    def allocate(self, pages: int) -> Run:
        """Zeroed pages. Raises OSError: EINVAL, ENOMEM, ENOSPC, or what granting raised."""
        if pages < 1:
            raise OSError(errno.EINVAL, "no pages to allocate")
        with self._lock:
            if self._closed:
                raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
            self._collect()
            region, offset, fresh = self._find(pages)
            try:
                mapped = _core.map_pages([(region.fd, offset, pages)])
            except BaseException:
                region.give(offset, pages)
                raise
            freed = [False]
            self._watched[weakref.ref(mapped, self._gone)] = (region, offset, pages, freed)
        memory = memoryview(mapped)
        del mapped
        if not fresh:
            memory[:] = bytes(len(memory))
        first = region.first + offset

        def free() -> None:
            freed[0] = True

        return Run(memory, tuple(range(first, first + pages)), free)

    def close(self) -> None:
        """Let go of the regions; mappings that somebody still looks at stay."""
        with self._lock:
            self._closed = True
            regions, self._regions = self._regions, []
        for region in regions:
            os.close(region.fd)

    def abandon(self) -> None:
        """In a child of fork(2), where a thread that is not here may have the lock."""
        self._closed = True
        regions, self._regions = self._regions, []
        for region in regions:
            os.close(region.fd)

    def _gone(self, ref: weakref.ref[_core.PageMap]) -> None:
        region, offset, pages, freed = self._watched.pop(ref)
        # Pages that the backend may still have mapped are lost rather than given to two sockets.
        if freed[0]:
            self._returned.append((region, offset, pages))

    def _collect(self) -> None:
        while self._returned:
            region, offset, pages = self._returned.popleft()
            region.give(offset, pages)
        empty = [region for region in self._regions if not region.used]
        for region in empty[1:]:
            self._regions.remove(region)
            os.close(region.fd)
            self._withdraw(region.first)

    def _find(self, pages: int) -> tuple[_Region, int, bool]:
        for region in self._regions:
            found = region.take(pages)
            if found is not None:
                return region, *found
        region = self._grow(pages)
        found = region.take(pages)
        assert found is not None
        return region, *found

    def _grow(self, pages: int) -> _Region:
        total = sum(region.pages for region in self._regions)
        size = max(pages, min(max(total, SMALLEST), LARGEST))
        if total + size > self._limits.pages:
            size = pages
        if total + size > self._limits.pages or len(self._regions) >= self._limits.regions:
            raise OSError(errno.ENOSPC, "the session has all the pages it may have")
        fd = make_memory(size)
        try:
            self._grant(self._next, size, fd)
        except BaseException:
            os.close(fd)
            raise
        region = _Region(fd, self._next, size)
        # References are not used twice: a late command cannot name somebody else's page.
        self._next += size
        self._regions.append(region)
        return region
