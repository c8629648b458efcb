"""The far end of `xensock bench xen`, in the backend's domain: one port for all that is measured.

A client's first nine bytes say what it wants: a letter, and a count as a big-endian number of 64 bits.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

ECHO, TAKE, GIVE = b"E", b"T", b"G"
WANT = struct.Struct("!cQ")
BLOCK = 1 << 16


def exactly(sock: socket.socket, count: int) -> bytes:
    """So many bytes. Raises EOFError."""
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise EOFError("the other end closed the connection")
        data += more
    return data


def take(sock: socket.socket, count: int) -> None:
    """Read so many bytes and forget them. Raises EOFError."""
    left = count
    while left:
        got = len(sock.recv(min(left, 4 * BLOCK)))
        if not got:
            raise EOFError(f"the other end closed the connection after {count - left} bytes")
        left -= got


def give(sock: socket.socket, count: int) -> None:
    """Send so many bytes."""
    block = bytes(BLOCK)
    for left in range(count, 0, -BLOCK):
        sock.sendall(block[:left])


def serve_one(sock: socket.socket) -> None:
    """Do what one client wants: echo; take and then say so by a byte; give."""
    with sock, contextlib.suppress(OSError, EOFError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        kind, count = WANT.unpack(exactly(sock, WANT.size))
        if kind == TAKE:
            take(sock, count)
            sock.sendall(b"t")
        elif kind == GIVE:
            give(sock, count)
        while data := sock.recv(4096):
            sock.sendall(data)


def serve(listener: socket.socket) -> None:
    """Serve clients, each by its own thread, until the listener is closed."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve_one, args=(sock,), daemon=True).start()
