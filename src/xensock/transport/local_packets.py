"""Packets of the local transport on a socket: bytes with descriptors, which nobody may leak."""

from __future__ import annotations

import array
import contextlib
import os
import socket
from typing import TYPE_CHECKING

from xensock.transport.base import ProtocolError
from xensock.wire import local

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MOST_FDS = 2
# One more than a message may have: then what is too much is seen, and closed.
_ANCILLARY = socket.CMSG_SPACE((MOST_FDS + 1) * array.array("i").itemsize)


def send(
    sock: socket.socket, message: local.Message, fds: Sequence[int] = (), flags: int = 0
) -> None:
    """Send one message, whole or not at all. Raises OSError as sendmsg(2)."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([local.encode(message)], rights, flags | socket.MSG_NOSIGNAL)


def receive(sock: socket.socket, flags: int = 0) -> tuple[bytes, list[int]]:
    """One packet and its descriptors, which are the caller's; b"" when the other side is gone.

    Raises OSError as recvmsg(2), ProtocolError for a packet that is too large, or whose descriptors
    are too many for it or for this process (then some did not arrive; all are closed).
    """
    packet, ancillary, told, _ = sock.recvmsg(
        local.LARGEST, _ANCILLARY, flags | socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            fds.extend(numbers)
    if told & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > MOST_FDS:
        close_all(fds)
        if told & socket.MSG_TRUNC:
            raise ProtocolError(f"a message of more than {local.LARGEST} bytes")
        raise ProtocolError(
            "more descriptors with a message than there may be, or than we can have"
        )
    return packet, fds


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors, whatever happens to one of them."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
