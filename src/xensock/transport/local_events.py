"""Event channels of the local transport: two eventfds, one for each direction.

Both sides hold both descriptors' open files, so the other side can make them blocking or fill them
at any time: nothing here relies on their flags.
"""

from __future__ import annotations

import errno
import os
import select

from xensock import _core

_EVENTFD = "anon_inode:[eventfd]"


def is_eventfd(fd: int) -> bool:
    """Whether a descriptor is an eventfd(2); no path and no other file can have that link."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == _EVENTFD
    except OSError:
        return False


def notify(fd: int) -> None:
    """Add 1, unless the counter is full: then the other side has an event to see anyway."""
    _core.notify(fd)


def clear(fd: int) -> bool:
    """Set the counter to 0; whether it was another. Does not block on a blocking eventfd either."""
    try:
        return os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT) == 8
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    poll = select.poll()  # an older kernel
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0)) and len(os.read(fd, 8)) == 8
