"""In a container: sockets that join a multicast group, bound and not bound. member.py FAMILY GROUP PORT LATER.

The first is bound to PORT and echoes what it hears; it is also told there what to do next.
"""

import socket
import struct
import sys
import threading

family, group, port, later = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
KIND = socket.AF_INET6 if family == 6 else socket.AF_INET
LEVEL = socket.IPPROTO_IPV6 if family == 6 else socket.IPPROTO_IP
JOIN, LEAVE = (20, 21) if family == 6 else (35, 36)
VALUE = socket.inet_pton(KIND, group) + (struct.pack("=I", 0) if family == 6 else bytes(8))


def joined(*address):
    """A socket in the group, bound to what is given."""
    sock = socket.socket(KIND, socket.SOCK_DGRAM)
    if address:
        sock.bind(address)
    sock.setsockopt(LEVEL, JOIN, VALUE)
    return sock


def echo(sock):
    while True:
        data, who = sock.recvfrom(100)
        sock.sendto(b"later " + data, who)


first, waiting, left = joined("", port), joined(), joined()
left.setsockopt(LEVEL, LEAVE, VALUE)
print("joined", flush=True)
while True:
    said, whom = first.recvfrom(100)
    if said == b"bind":
        try:
            waiting.bind(("", later))
        except PermissionError:
            said += b" refused"
        threading.Thread(target=echo, args=[waiting], daemon=True).start()
    elif said == b"leave":
        for each in (first, waiting):
            each.setsockopt(LEVEL, LEAVE, VALUE)
    first.sendto(said, whom)
