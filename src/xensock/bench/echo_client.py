"""A program that is measured: round trips of 64 bytes, one after the other.

Run as a file, with ADDRESS PORT TRIPS: it needs nothing of XenSock. Prints microseconds each: the
median over ten parts, so that one interruption does not count.
"""

from __future__ import annotations

import socket
import statistics
import sys
import time

MESSAGE = b"x" * 64
PARTS = 10


def trips(sock: socket.socket, count: int) -> float:
    """Microseconds each of `count` round trips took, as a mean. Raises EOFError."""
    start = time.perf_counter()
    for _ in range(count):
        sock.sendall(MESSAGE)
        got = len(sock.recv(64))
        while got < len(MESSAGE):
            more = len(sock.recv(64 - got))
            if not more:
                raise EOFError("the server closed the connection")
            got += more
    return (time.perf_counter() - start) / count * 1e6


def main(address: str, port: int, count: int) -> None:
    with socket.create_connection((address, port), timeout=20) as sock:
        # A timeout would put a poll(2) before each call.
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        part = max(count // PARTS, 1)
        trips(sock, part)  # warm
        print(statistics.median(trips(sock, part) for _ in range(PARTS)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
