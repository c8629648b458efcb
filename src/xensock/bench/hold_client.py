"""A program that is measured: opens connections and holds them.

Run as a file, with ADDRESS PORT COUNT: it needs nothing of XenSock. Connects and closes a few
times, says "ready", waits for a line, opens COUNT connections, says "held", waits for a line, ends.
"""

from __future__ import annotations

import resource
import socket
import struct
import sys

WARM = 100
# Closing resets: thousands of connections in TIME_WAIT would leave no port to the next run.
RESET = struct.pack("ii", 1, 0)


def opened(address: str, port: int) -> socket.socket:
    """One connection. Raises OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.connect((address, port))
    return sock


def main(address: str, port: int, count: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for _ in range(WARM):
        opened(address, port).close()
    print("ready", flush=True)
    sys.stdin.readline()
    held = [opened(address, port) for _ in range(count)]
    print(f"held {len(held)}", flush=True)
    sys.stdin.readline()
    for sock in held:
        sock.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
