"""One DNS question without any resolver library: `question.py udp|tcp SERVER NAME [TYPE]`.

Prints the answer's code, whether it is truncated, and its addresses (TYPE 1) or record count.
"""

import socket
import struct
import sys

protocol, server, name = sys.argv[1:4]
kind = int(sys.argv[4]) if len(sys.argv) > 4 else 1
labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
query = struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!xHH", kind, 1)
family = socket.AF_INET6 if ":" in server else socket.AF_INET
stream = protocol == "tcp"
with socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as sock:
    sock.settimeout(10)
    sock.connect((server, 53))
    if stream:
        with sock.makefile("rwb") as file:
            # In two pieces, as a slow network may bring it.
            framed = struct.pack("!H", len(query)) + query
            file.write(framed[:7])
            file.flush()
            file.write(framed[7:])
            file.flush()
            answer = file.read(struct.unpack("!H", file.read(2))[0])
    else:
        sock.send(query)
        answer = sock.recv(65535)
number, flags, _, count, _, _ = struct.unpack("!6H", answer[:12])
assert number == 0x1234, number


def past(place: int) -> int:
    """Where the name at `place` ends (RFC 1035, 4.1.4)."""
    while answer[place]:
        if answer[place] >= 0xC0:
            return place + 2
        place += answer[place] + 1
    return place + 1


place, found = past(12) + 4, []
for _ in range(count):
    place = past(place)
    type, _, _, length = struct.unpack("!HHIH", answer[place : place + 10])
    if type == kind:
        data = answer[place + 10 : place + 10 + length]
        found.append(socket.inet_ntoa(data) if kind == 1 else data.hex())
    place += 10 + length
print(flags & 15, "truncated" if flags & 0x200 else "whole", *sorted(found))
