"""Xen's stable libraries, loaded when they are first needed: nothing of Xen is there to build with.

libxenstore.so.4, libxengnttab.so.1 and libxenevtchn.so.1 keep their ABI over Xen's versions (xenstore.h, xengnttab.h,
xenevtchn.h). They talk to /dev/xen/xenbus, gntdev, gntalloc and evtchn, which need root, or rights to these files.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from ctypes import POINTER, c_bool, c_char_p, c_int, c_uint, c_uint32, c_void_p

from xensock.transport.base import TransportError

Pointer = int | None
_CRITICAL = 9
"""XTL_CRITICAL, above XTL_ERROR."""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.free.argtypes = [c_void_p]
_libc.free.restype = None


def free(pointer: Pointer) -> None:
    """free(3) of what a library allocated."""
    _libc.free(pointer)


def failure(what: str) -> OSError:
    """The OSError that a library's call left in errno."""
    number = ctypes.get_errno() or errno.EIO
    return OSError(number, f"{what}: {os.strerror(number)}")


def _load(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name, use_errno=True)
    except OSError:
        raise TransportError(
            errno.ENOENT, f"Xen's library {name} is not here (Debian: libxenstore4, libxenmisc4.17)"
        ) from None


def _declare(library: ctypes.CDLL, name: str, result: object, *arguments: object) -> None:
    function = getattr(library, name)
    function.restype = result
    function.argtypes = list(arguments)


@functools.cache
def quiet() -> Pointer:
    """A logger (xentoollog.h) for who serves others: their false references are answered, not written to stderr. None
    where there is no libxentoollog: the library logs by itself then."""
    try:
        found = _load("libxentoollog.so.1")
    except TransportError:
        return None
    _declare(found, "xtl_createlogger_stdiostream", c_void_p, c_void_p, c_int, c_uint)
    stream = c_void_p.in_dll(_libc, "stderr")
    made: Pointer = found.xtl_createlogger_stdiostream(stream, _CRITICAL, 0)
    return made


@functools.cache
def store() -> ctypes.CDLL:
    """libxenstore. Raises TransportError (ENOENT)."""
    found = _load("libxenstore.so.4")
    _declare(found, "xs_open", c_void_p, ctypes.c_ulong)
    _declare(found, "xs_close", None, c_void_p)
    _declare(found, "xs_read", c_void_p, c_void_p, c_uint32, c_char_p, POINTER(c_uint))
    _declare(found, "xs_write", c_bool, c_void_p, c_uint32, c_char_p, c_char_p, c_uint)
    _declare(found, "xs_rm", c_bool, c_void_p, c_uint32, c_char_p)
    _declare(
        found, "xs_directory", POINTER(c_char_p), c_void_p, c_uint32, c_char_p, POINTER(c_uint)
    )
    _declare(found, "xs_watch", c_bool, c_void_p, c_char_p, c_char_p)
    _declare(found, "xs_unwatch", c_bool, c_void_p, c_char_p, c_char_p)
    _declare(found, "xs_fileno", c_int, c_void_p)
    _declare(found, "xs_check_watch", POINTER(c_char_p), c_void_p)
    _declare(found, "xs_transaction_start", c_uint32, c_void_p)
    _declare(found, "xs_transaction_end", c_bool, c_void_p, c_uint32, c_bool)
    _declare(found, "xs_get_domain_path", c_void_p, c_void_p, c_uint)
    return found


@functools.cache
def grants() -> ctypes.CDLL:
    """libxengnttab. Raises TransportError (ENOENT)."""
    found = _load("libxengnttab.so.1")
    refs = POINTER(c_uint32)
    _declare(found, "xengnttab_open", c_void_p, c_void_p, c_uint)
    _declare(found, "xengnttab_close", c_int, c_void_p)
    _declare(
        found,
        "xengnttab_map_domain_grant_refs",
        c_void_p,
        c_void_p,
        c_uint32,
        c_uint32,
        refs,
        c_int,
    )
    _declare(found, "xengnttab_unmap", c_int, c_void_p, c_void_p, c_uint32)
    _declare(found, "xengntshr_open", c_void_p, c_void_p, c_uint)
    _declare(found, "xengntshr_close", c_int, c_void_p)
    _declare(found, "xengntshr_share_pages", c_void_p, c_void_p, c_uint32, c_int, refs, c_int)
    _declare(found, "xengntshr_unshare", c_int, c_void_p, c_void_p, c_uint32)
    return found


@functools.cache
def events() -> ctypes.CDLL:
    """libxenevtchn. Raises TransportError (ENOENT)."""
    found = _load("libxenevtchn.so.1")
    _declare(found, "xenevtchn_open", c_void_p, c_void_p, c_uint)
    _declare(found, "xenevtchn_close", c_int, c_void_p)
    _declare(found, "xenevtchn_fd", c_int, c_void_p)
    _declare(found, "xenevtchn_notify", c_int, c_void_p, c_uint32)
    _declare(found, "xenevtchn_bind_unbound_port", c_int, c_void_p, c_uint32)
    _declare(found, "xenevtchn_bind_interdomain", c_int, c_void_p, c_uint32, c_uint32)
    _declare(found, "xenevtchn_unbind", c_int, c_void_p, c_uint32)
    return found
