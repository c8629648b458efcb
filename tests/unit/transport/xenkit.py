"""Xen's libraries as they look from here, in one process: xenstore, grants and event channels without a hypervisor.

The seam is what `xensock.transport.xen_libs` loads. Values are handed over as the libraries do: in memory of
malloc(3)'s, with errno. `domain` is the one that handles belong to which are opened now.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import mmap
import os
import threading
from ctypes import c_char_p, c_int, c_long, c_size_t, c_void_p
from typing import TYPE_CHECKING, Any

from backkit import Channel
from xensock.transport import xen_events, xen_libs
from xensock.transport.base import PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest

_libc = ctypes.CDLL(None, use_errno=True)
_libc.malloc.restype = c_void_p
_libc.malloc.argtypes = [c_size_t]
_libc.mmap.restype = c_void_p
_libc.mmap.argtypes = [c_void_p, c_size_t, c_int, c_int, c_int, c_long]
_libc.munmap.argtypes = [c_void_p, c_size_t]
FIXED = 0x10  # MAP_FIXED


def _strings(found: list[bytes]) -> Any:
    """One block: pointers, and what they point to."""
    size = ctypes.sizeof(c_char_p)
    text = b"".join(each + b"\0" for each in found)
    block = _libc.malloc(size * len(found) + len(text) or 1)
    at = block + size * len(found)
    ctypes.memmove(at, text, len(text))
    for index, each in enumerate(found):
        c_void_p.from_address(block + size * index).value = at
        at += len(each) + 1
    return ctypes.cast(block, ctypes.POINTER(c_char_p))


def _refuse(number: int) -> None:
    ctypes.set_errno(number)


class Handle:
    """A connection to xenstore."""

    def __init__(self, domain: int) -> None:
        self.domain = domain
        self.watches: list[tuple[str, str]] = []
        self.events: list[tuple[str, str]] = []
        self.ready = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


class Store:
    """libxenstore: one tree for everybody; transactions end well but `conflicts` times."""

    def __init__(self, xen: Xen) -> None:
        self._xen = xen
        self.nodes: dict[str, str] = {}
        self.reads = self.conflicts = 0
        self._handles: dict[int, Handle] = {}
        self._lock = threading.RLock()

    def _path(self, handle: int, raw: bytes) -> str:
        path = raw.decode()
        return path if path.startswith("/") else f"{of(self._handles[handle].domain)}/{path}"

    def set(self, path: str, value: str) -> None:
        with self._lock:
            self.nodes[path] = value
            self._tell(path)

    def _tell(self, path: str) -> None:
        for handle in self._handles.values():
            for watched, token in handle.watches:
                if path == watched or path.startswith(watched + "/"):
                    handle.events.append((path, token))
                    os.eventfd_write(handle.ready, 1)

    def xs_open(self, flags: int) -> int:
        with self._lock:
            number = next(self._xen.numbers)
            self._handles[number] = Handle(self._xen.domain)
            return number

    def xs_close(self, handle: int) -> None:
        with self._lock:
            os.close(self._handles.pop(handle).ready)

    def xs_read(self, handle: int, number: int, path: bytes, length: Any) -> int | None:
        with self._lock:
            self.reads += 1
            where = self._path(handle, path)
            if path == b"domid":
                value: str | None = str(self._handles[handle].domain)
            else:
                value = self.nodes.get(where)
                if value is None and any(node.startswith(where + "/") for node in self.nodes):
                    value = ""
        if value is None:
            return _refuse(errno.ENOENT)
        raw = value.encode()
        length._obj.value = len(raw)
        block = _libc.malloc(len(raw) + 1)
        ctypes.memmove(block, raw + b"\0", len(raw) + 1)
        return int(block)

    def xs_write(self, handle: int, number: int, path: bytes, raw: bytes, length: int) -> bool:
        self.set(self._path(handle, path), raw.decode())
        return True

    def xs_rm(self, handle: int, number: int, path: bytes) -> bool:
        with self._lock:
            where = self._path(handle, path)
            for name in [n for n in self.nodes if n == where or n.startswith(where + "/")]:
                del self.nodes[name]
                self._tell(name)
        return True

    def xs_directory(self, handle: int, number: int, path: bytes, count: Any) -> Any:
        with self._lock:
            start = self._path(handle, path) + "/"
            below = [name[len(start) :] for name in self.nodes if name.startswith(start)]
        found = list(dict.fromkeys(name.split("/")[0].encode() for name in below))
        count._obj.value = len(found)
        return _strings(found)

    def xs_watch(self, handle: int, path: bytes, token: bytes) -> bool:
        with self._lock:
            one, where = self._handles[handle], self._path(handle, path)
            one.watches.append((where, token.decode()))
            one.events.append((where, token.decode()))
            os.eventfd_write(one.ready, 1)
        return True

    def xs_unwatch(self, handle: int, path: bytes, token: bytes) -> bool:
        with self._lock, contextlib.suppress(ValueError):
            self._handles[handle].watches.remove((self._path(handle, path), token.decode()))
        return True

    def xs_fileno(self, handle: int) -> int:
        return self._handles[handle].ready

    def xs_check_watch(self, handle: int) -> Any:
        with self._lock:
            one = self._handles[handle]
            if not one.events:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(one.ready)
                return _refuse(errno.EAGAIN)
            return _strings([each.encode() for each in one.events.pop(0)])

    def xs_transaction_start(self, handle: int) -> int:
        return 1

    def xs_transaction_end(self, handle: int, number: int, abort: bool) -> bool:
        if abort or not self.conflicts:
            return True
        self.conflicts -= 1
        _refuse(errno.EAGAIN)
        return False

    def xs_get_domain_path(self, handle: int, domain: int) -> int:
        raw = of(domain).encode() + b"\0"
        block = _libc.malloc(len(raw))
        ctypes.memmove(block, raw, len(raw))
        return int(block)


class Grants:
    """libxengnttab: references name pages of memfds."""

    def __init__(self, xen: Xen) -> None:
        self._numbers = xen.numbers
        self._pages: dict[int, tuple[int, int, int]] = {}  # reference: descriptor, offset, for whom
        self._runs: dict[int, tuple[int, list[int]]] = {}
        self.mapped = 0

    def _open(self, *_: object) -> int:
        return next(self._numbers)

    def _close(self, handle: int) -> int:
        return 0

    xengnttab_open = xengntshr_open = _open
    xengnttab_close = xengntshr_close = _close

    def xengntshr_share_pages(
        self, handle: int, domain: int, count: int, refs: Any, write: int
    ) -> int:
        fd = os.memfd_create("grants", os.MFD_CLOEXEC)
        os.ftruncate(fd, count * PAGE)
        address = _libc.mmap(None, count * PAGE, 3, mmap.MAP_SHARED, fd, 0)
        made = [next(self._numbers) for _ in range(count)]
        for index, ref in enumerate(made):
            refs[index] = ref
            self._pages[ref] = (fd, index * PAGE, domain)
        self._runs[address] = (fd, made)
        return int(address)

    def xengntshr_unshare(self, handle: int, address: int, count: int) -> int:
        fd, refs = self._runs.pop(address)
        for ref in refs:
            del self._pages[ref]
        os.close(fd)
        return int(_libc.munmap(address, count * PAGE))

    def xengnttab_map_domain_grant_refs(
        self, handle: int, count: int, domain: int, refs: Any, access: int
    ) -> int | None:
        if any(ref not in self._pages for ref in refs):
            return _refuse(errno.EINVAL)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = _libc.mmap(None, count * PAGE, 0, flags, -1, 0)
        for index, ref in enumerate(refs):
            fd, offset, _ = self._pages[ref]
            at = address + index * PAGE
            _libc.mmap(at, PAGE, access, mmap.MAP_SHARED | FIXED, fd, offset)
        self.mapped += count
        return int(address)

    def xengnttab_unmap(self, handle: int, address: int, count: int) -> int:
        self.mapped -= count
        return int(_libc.munmap(address, count * PAGE))


class Event(Channel):
    """transport.base.Event, by whose end somebody is told."""

    when_closed: Callable[[], None] = staticmethod(lambda: None)

    def close(self) -> None:
        if self.notify_fd >= 0:
            super().close()
            self.when_closed()


class Ports:
    """`xen_events.Ports`: a channel is two eventfds."""

    def __init__(self, xen: Xen) -> None:
        self._numbers = xen.numbers
        self._channels: dict[int, tuple[int, int]] = {}

    def unbound(self, domain: int) -> Event:
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        port, fds = next(self._numbers), (os.eventfd(0, flags), os.eventfd(0, flags))
        self._channels[port] = fds
        return Event(port, os.dup(fds[0]), os.dup(fds[1]))

    def bound(self, domain: int, port: int) -> Event:
        if port not in self._channels:
            raise OSError(errno.EINVAL, "no such port")
        fds = self._channels[port]
        return Event(port, os.dup(fds[1]), os.dup(fds[0]))

    def share(self) -> Ports:
        return self

    def close(self) -> None:
        """Of one of its users."""

    def end(self) -> None:
        for fds in self._channels.values():
            for fd in fds:
                os.close(fd)


def of(domain: int) -> str:
    """A domain's directory."""
    return f"/local/domain/{domain}"


class Xen:
    """Domain 0, where backends are, and domains that have devices."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.domain = 0
        self.numbers = itertools.count(8)
        self.store, self.grants, self.ports = Store(self), Grants(self), Ports(self)
        monkeypatch.setattr(xen_libs, "store", lambda: self.store)
        monkeypatch.setattr(xen_libs, "grants", lambda: self.grants)
        monkeypatch.setattr(xen_events, "ports", lambda: self.ports)

    def device(self, domain: int, number: int = 0) -> tuple[str, str]:
        """What the toolstack makes: the frontend's directory and the backend's."""
        front = f"{of(domain)}/device/pvcalls/{number}"
        back = f"{of(0)}/backend/pvcalls/{domain}/{number}"
        self.store.set(f"{of(domain)}/name", f"guest{domain}")
        self.store.set(f"{front}/backend", back)
        self.store.set(f"{front}/backend-id", "0")
        self.store.set(f"{front}/state", "1")
        self.store.set(f"{back}/frontend", front)
        self.store.set(f"{back}/state", "1")
        return front, back

    @contextlib.contextmanager
    def inside(self, domain: int) -> Iterator[None]:
        """What is opened meanwhile is of that domain."""
        before, self.domain = self.domain, domain
        try:
            yield
        finally:
            self.domain = before
