"""Connects to a port once somebody listens there, sends a line and says what comes back. client.py ADDRESS PORT"""

import socket
import sys
import time

for _ in range(600):
    try:
        sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
        break
    except OSError:
        time.sleep(0.5)
with sock:
    sock.sendall(b"hello\n")
    print("client got", sock.recv(100).decode().strip(), flush=True)
