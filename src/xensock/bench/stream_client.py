"""A program that is measured: sends for some seconds to the load program's server.

Run as a file, with ADDRESS PORT SECONDS SIZE and, to use XenSock's own sockets, the URL of a backend.
Prints bytes a second that arrived, as the server counts them (native/bench/ringload.c).
"""

from __future__ import annotations

import socket as standard
import struct
import sys
import time

BATCH = 4 << 20  # bytes between two looks at the clock
REPORT = struct.Struct("=QQQ")


def rate(sock: standard.socket, seconds: float, size: int) -> float:
    """Bytes a second. Raises OSError, EOFError."""
    data = bytes(size)
    sock.sendall(b"s")
    until = time.monotonic() + seconds
    while True:
        for _ in range(0, BATCH, size):
            sock.sendall(data)
        if time.monotonic() >= until:
            break
    sock.shutdown(standard.SHUT_WR)
    report = b""
    while len(report) < REPORT.size:
        part = sock.recv(REPORT.size - len(report))
        if not part:
            raise EOFError("the server closed the connection")
        report += part
    count, first, last = map(float, REPORT.unpack(report))
    return count * 1e9 / max(last - first, 1)


def main(address: str, port: int, seconds: float, size: int, url: str | None = None) -> None:
    if url is None:
        sock = standard.create_connection((address, port), timeout=20)
    else:
        import xensock

        xensock.attach(url)
        sock = xensock.create_connection((address, port), timeout=20)
    with sock:
        # A timeout would put a poll(2) before each call.
        sock.settimeout(None)
        sock.setsockopt(standard.IPPROTO_TCP, standard.TCP_NODELAY, 1)
        print(rate(sock, seconds, size))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
