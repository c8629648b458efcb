"""Error numbers on the wire: negated Linux x86 numbers, whatever the systems on both sides are.

The specification (docs/misc/pvcalls.pandoc in the Xen tree) fixes a table. It lacks errors that
every TCP program meets, as ECONNREFUSED; Linux sends their negated numbers, and so does XenSock.
"""

from __future__ import annotations

import errno


class WireError(ValueError):
    """Bytes that break the protocol, or a value that it cannot carry."""


# The specification's table. ENOTSUP is not POSIX's name for EOPNOTSUPP here: it is Linux's
# internal ENOTSUPP, the answer to a command that the backend does not know.
TABLE: dict[str, int] = {
    "EPERM": -1,
    "ENOENT": -2,
    "ESRCH": -3,
    "EINTR": -4,
    "EIO": -5,
    "ENXIO": -6,
    "E2BIG": -7,
    "ENOEXEC": -8,
    "EBADF": -9,
    "ECHILD": -10,
    "EAGAIN": -11,
    "EWOULDBLOCK": -11,
    "ENOMEM": -12,
    "EACCES": -13,
    "EFAULT": -14,
    "EBUSY": -16,
    "EEXIST": -17,
    "EXDEV": -18,
    "ENODEV": -19,
    "EISDIR": -21,
    "EINVAL": -22,
    "ENFILE": -23,
    "EMFILE": -24,
    "ENOSPC": -28,
    "EROFS": -30,
    "EMLINK": -31,
    "EDOM": -33,
    "ERANGE": -34,
    "EDEADLK": -35,
    "ENAMETOOLONG": -36,
    "ENOLCK": -37,
    "ENOSYS": -38,
    "ENOTEMPTY": -39,
    "ENODATA": -61,
    "ETIME": -62,
    "EBADMSG": -74,
    "EOVERFLOW": -75,
    "EILSEQ": -84,
    "ERESTART": -85,
    "ENOTSOCK": -88,
    "EOPNOTSUPP": -95,
    "EAFNOSUPPORT": -97,
    "EADDRINUSE": -98,
    "EADDRNOTAVAIL": -99,
    "ENOBUFS": -105,
    "EISCONN": -106,
    "ENOTCONN": -107,
    "ETIMEDOUT": -110,
    "ENOTSUP": -524,
}

# What the table lacks and socket calls answer: Linux's numbers (asm-generic/errno.h), negated.
BEYOND_TABLE: dict[str, int] = {
    "ENOTTY": -25,
    "EPIPE": -32,
    "ELOOP": -40,
    "ENONET": -64,
    "EPROTO": -71,
    "EUSERS": -87,
    "EDESTADDRREQ": -89,
    "EMSGSIZE": -90,
    "EPROTOTYPE": -91,
    "ENOPROTOOPT": -92,
    "EPROTONOSUPPORT": -93,
    "ESOCKTNOSUPPORT": -94,
    "EPFNOSUPPORT": -96,
    "ENETDOWN": -100,
    "ENETUNREACH": -101,
    "ENETRESET": -102,
    "ECONNABORTED": -103,
    "ECONNRESET": -104,
    "ESHUTDOWN": -108,
    "ETOOMANYREFS": -109,
    "ECONNREFUSED": -111,
    "EHOSTDOWN": -112,
    "EHOSTUNREACH": -113,
    "EALREADY": -114,
    "EINPROGRESS": -115,
    "ESTALE": -116,
    "EDQUOT": -122,
    "ECANCELED": -125,
}

ENOTSUP = TABLE["ENOTSUP"]
"""The answer to a command that the backend does not know."""

_TO_WIRE: dict[int, int] = {
    getattr(errno, name): number
    for name, number in {**BEYOND_TABLE, **TABLE}.items()
    if name != "ENOTSUP" and hasattr(errno, name)
}
_FROM_WIRE: dict[int, int] = {number: own for own, number in _TO_WIRE.items()} | {
    ENOTSUP: errno.EOPNOTSUPP
}


def to_wire(number: int) -> int:
    """The wire's form, zero or negative, of an errno of this system; 0 is success.

    A number that has no Linux form, as the kernel's internal ones, travels as EIO.
    """
    if number == 0:
        return 0
    return _TO_WIRE.get(number, TABLE["EIO"])


def from_wire(ret: int) -> int:
    """The errno of this system for a result: 0 for success, EIO for a number nobody defined."""
    if ret >= 0:
        return 0
    return _FROM_WIRE.get(ret, errno.EIO)
