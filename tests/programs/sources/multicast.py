"""A member of a multicast group: multicast.py WHAT FAMILY GROUP PORT. Says what it does, a line each."""

import errno
import json
import socket
import struct
import sys

what, family, group, port = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
SIX = family == 6
KIND = socket.AF_INET6 if SIX else socket.AF_INET
LEVEL = socket.IPPROTO_IPV6 if SIX else socket.IPPROTO_IP
JOIN, LEAVE = (20, 21) if SIX else (35, 36)
PKTINFO, RECVPKTINFO = (50, 49) if SIX else (8, 8)
raw = socket.inet_pton(KIND, group)


def membership(interface=0):
    return raw + (struct.pack("=I", interface) if SIX else struct.pack("=II", 0, interface))


def make():
    sock = socket.socket(KIND, socket.SOCK_DGRAM)
    sock.settimeout(20)
    return sock


def say(text):
    print(text, flush=True)


def hear():
    """Join, hear one datagram, tell its sender what was heard; leave."""
    with make() as sock:
        sock.setsockopt(LEVEL, RECVPKTINFO, 1)
        sock.bind(("", port))
        sock.setsockopt(LEVEL, JOIN, membership())
        say("joined")
        data, control, _, who = sock.recvmsg(100, 100)
        info = next(value for level, kind, value in control if (level, kind) == (LEVEL, PKTINFO))
        called = socket.inet_ntop(KIND, info[:16] if SIX else info[8:12])
        sock.sendto(json.dumps([data.decode(), who[0], called]).encode(), who)
        sock.setsockopt(LEVEL, LEAVE, membership())
        say("left")


def outcome(call):
    """What becomes of a call: its value, or the name of its errno."""
    try:
        return call()
    except TimeoutError:
        return "nothing"
    except OSError as error:
        return errno.errorcode[error.errno]


def receive(sock, patience=20):
    sock.settimeout(patience)
    return outcome(lambda: sock.recvfrom(100)[0].decode())


def alone():
    """What one host sees of itself: its own datagrams, once or not at all, and the kernel's words."""
    found = {}
    loop, hops, interface = (19, 18, 17) if SIX else (34, 33, 32)
    card = socket.if_nametoindex(
        next(n for _, n in socket.if_nameindex() if n not in ("lo", "xs0"))
    )
    with make() as member, make() as sender:
        member.setsockopt(LEVEL, JOIN, membership())  # before it is bound
        found["twice"] = outcome(lambda: member.setsockopt(LEVEL, JOIN, membership()))
        found["bind"] = outcome(lambda: member.bind(("", port)))
        for on in (1, 0, 1):
            sender.setsockopt(LEVEL, loop, on)
            sender.sendto(f"loop {on}".encode(), (group, port))
        # One that is sent without a loop is not heard, and none is heard twice.
        found["heard"] = [receive(member), receive(member), receive(member, 0.3)]
        member.setsockopt(LEVEL, LEAVE, membership())
        found["left twice"] = outcome(lambda: member.setsockopt(LEVEL, LEAVE, membership()))
        sender.sendto(b"left", (group, port))
        found["left"] = receive(member, 0.3)
        found["by index"] = outcome(lambda: member.setsockopt(LEVEL, JOIN, membership(card)))
        found["no index"] = outcome(lambda: member.setsockopt(LEVEL, JOIN, membership(9999)))
        found["short"] = outcome(lambda: member.setsockopt(LEVEL, JOIN, b"1234"))
        name = "::1" if SIX else "127.0.0.1"
        other = socket.inet_pton(KIND, name) + membership()[len(raw) :]
        found["no group"] = outcome(lambda: member.setsockopt(LEVEL, JOIN, other))
        found["default hops"] = sender.getsockopt(LEVEL, hops)
    with make() as member, socket.socket(KIND, socket.SOCK_STREAM) as stream:
        member.bind((group, port + 1))
        found["bound to"] = member.getsockname()[0]
        value = struct.pack("=I4x", card) + sockaddr(group)
        found["MCAST_JOIN_GROUP"] = outcome(lambda: member.setsockopt(LEVEL, 42, value))
        member.setsockopt(LEVEL, 45, value)
        value += sockaddr("2001:db8::77" if SIX else "203.0.113.77")
        found["MCAST_JOIN_SOURCE_GROUP"] = outcome(lambda: member.setsockopt(LEVEL, 46, value))
        found["MCAST_LEAVE_SOURCE_GROUP"] = outcome(lambda: member.setsockopt(LEVEL, 47, value))
        found["stream"] = outcome(lambda: stream.setsockopt(LEVEL, JOIN, membership()))
        if not SIX:
            nobody = socket.inet_aton("198.51.100.99")
            found["no such address"] = outcome(lambda: member.setsockopt(0, JOIN, raw + nobody))
            found["IP_MULTICAST_IF"] = outcome(lambda: member.setsockopt(0, interface, nobody))
            found["of a stream"] = outcome(lambda: stream.setsockopt(0, interface, bytes(4)))
    say(json.dumps(found))


def sockaddr(host):
    """struct sockaddr_storage."""
    packed = socket.inet_pton(KIND, host)
    return (struct.pack("=HH", KIND, 0) + (bytes(4) if SIX else b"") + packed).ljust(128, b"\0")


def tell():
    """Send to the group: as it comes, with a number of hops, by the interface of one's own address."""
    hops, interface = (18, 17) if SIX else (33, 32)
    with make() as sock:
        sock.sendto(b"plain", (group, port))
        for number in (3, 64):
            sock.setsockopt(LEVEL, hops, number)
            sock.sendto(f"{number} hops".encode(), (group, port))
    with make() as sock, make() as look:
        if not SIX:
            look.connect((sys.argv[5], 9))
            sock.setsockopt(LEVEL, interface, socket.inet_aton(look.getsockname()[0]))
        sock.sendto(b"by an address", (group, port))
        sock.connect((group, port))
        sock.send(b"connected")


def refused():
    """Ways to join a group that no rule names, and one whose rule has another port."""
    found = {}
    with make() as sock:
        found["join"] = outcome(lambda: sock.setsockopt(LEVEL, JOIN, membership()))
        value = struct.pack("=I4x", 0) + sockaddr(group)
        found["MCAST_JOIN_GROUP"] = outcome(lambda: sock.setsockopt(LEVEL, 42, value))
        both = value + sockaddr("2001:db8::77" if SIX else "203.0.113.77")
        found["MCAST_JOIN_SOURCE_GROUP"] = outcome(lambda: sock.setsockopt(LEVEL, 46, both))
        if not SIX:
            source = raw + bytes(4) + socket.inet_aton("203.0.113.77")
            found["IP_ADD_SOURCE_MEMBERSHIP"] = outcome(lambda: sock.setsockopt(0, 39, source))
        # Its own loopback is the guest's.
        found["loopback"] = outcome(lambda: sock.setsockopt(LEVEL, JOIN, membership(1)))
    allowed = socket.inet_pton(KIND, sys.argv[5])
    with make() as sock:
        value = allowed + (bytes(4) if SIX else bytes(8))
        found["allowed"] = outcome(lambda: sock.setsockopt(LEVEL, JOIN, value))
        found["another port"] = outcome(lambda: sock.bind(("", port)))
    say(json.dumps(found))


globals()[what]()
