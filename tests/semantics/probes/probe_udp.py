"""UDP sockets: names, errors, sizes, flags, servers, sharing."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
from typing import Any

from kit import (
    PORTS,
    Far,
    Net,
    both,
    main,
    mask,
    name,
    outcome,
    pending,
    poll,
    probe,
    raw,
    say,
    token,
)

UDP_SEGMENT, UDP_GRO = 103, 104
IP_RECVERR, IPV6_RECVERR = 11, 25
IP_PKTINFO, IP_MTU, IP_MTU_DISCOVER, PMTUDISC_DO = 8, 14, 10, 2
IPV6_MTU_DISCOVER, IPV6_MTU = 23, 24


def udp(net: Net, seconds: float = 5) -> socket.socket:
    sock = socket.socket(net.family, socket.SOCK_DGRAM)
    sock.settimeout(seconds)
    return sock


def far(net: Net) -> tuple[str, int]:
    return (net.peer, PORTS["datagrams"])


def now(sock: socket.socket, size: int = 100) -> object:
    """recv(2) that does not wait; Python's own waiting would hide the errno."""
    before = sock.gettimeout()
    sock.setblocking(False)
    try:
        return outcome(sock.recv, size)
    finally:
        sock.settimeout(before)


def connected(net: Net, seconds: float = 5) -> socket.socket:
    sock = udp(net, seconds)
    sock.connect(far(net))
    return sock


def who(sock: socket.socket) -> list[Any]:
    sock.send(b"who")
    return list(json.loads(sock.recv(200)))


@both
def names_when_connected(net: Net) -> None:
    sock = udp(net)
    say("new", mask(sock.getsockname()))
    say("no peer", outcome(sock.getpeername), "ENOTCONN")
    sock.connect(far(net))
    say("local", mask(sock.getsockname()), f"{net.host} *")
    say("peer", mask(sock.getpeername(), (PORTS["datagrams"], "far")))
    say("seen as", who(sock)[:2] == list(sock.getsockname()[:2]), True)


@both
def names_when_not_connected(net: Net) -> None:
    sock = udp(net)
    sock.sendto(b"who", far(net))
    data, sender = sock.recvfrom(200)
    say("local", mask(sock.getsockname()), f"{net.any} *")
    say("sender", mask(sender, (PORTS["datagrams"], "far")))
    say("seen as", json.loads(data) == [net.host, sock.getsockname()[1]], True)


@both
def bound(net: Net) -> None:
    for host in (net.any, net.host):
        sock = udp(net)
        say("bind", outcome(sock.bind, (host, 0)), "ok")
        say("local", mask(sock.getsockname()))
        sock.sendto(b"who", far(net))
        say("seen as", json.loads(sock.recv(200)) == [net.host, sock.getsockname()[1]], True)
        say("again", outcome(sock.bind, (host, 0)), "EINVAL")
        sock.connect(far(net))
        say("connected", outcome(sock.send, b"abc"))
        say("echo", outcome(sock.recv, 10), "abc")
    sock = udp(net)
    nowhere = "198.51.100.77" if net.version == 4 else "2001:db8:20::77"
    say("not ours", outcome(sock.bind, (nowhere, 0)), "EADDRNOTAVAIL")


@both
def a_port_is_free_at_once(net: Net) -> None:
    """close(2) gives it back: to another address, to who shares it and who does not, and after sending alone."""
    results = set()
    sock = udp(net)
    sock.bind((net.any, 0))
    port = sock.getsockname()[1]
    for turn in range(60):
        sock.close()
        sock = udp(net)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, turn % 3 == 1)
        results.add(outcome(sock.bind, ((net.any, net.host)[turn % 4 == 3], port)))
    say("bound", sorted(map(str, results)), ["ok"])
    sock.sendto(b"who", far(net))
    say("seen as", json.loads(sock.recv(200))[1] == port, True)
    results.clear()
    for _ in range(20):
        sock.close()
        sock = udp(net)
        sock.sendto(b"who", far(net))
        sock.recv(200)
        port = sock.getsockname()[1]
        sock.close()
        sock = udp(net)
        results.add(outcome(sock.bind, (net.any, port)))
    say("bound to what was sent from", sorted(map(str, results)), ["ok"])


@both
def one_port_for_all(net: Net) -> None:
    """Datagrams of one socket to different destinations come from one port."""
    sock = udp(net)
    ports = set()
    for _ in range(3):
        sock.sendto(b"who", far(net))
        ports.add(json.loads(sock.recv(200))[1])
    sock.sendto(b"x", (net.peer, PORTS["closed"]))
    sock.sendto(b"who", far(net))
    ports.add(json.loads(sock.recv(200))[1])
    say("ports", len(ports), 1)


@both
def closed_port(net: Net) -> None:
    sock = udp(net)
    sock.connect((net.peer, PORTS["closed"]))
    say("send", outcome(sock.send, b"x"), 1)
    say("recv", outcome(sock.recv, 10), "ECONNREFUSED")
    say("send", outcome(sock.send, b"x"), 1)
    say("poll", "ERR" in poll(sock, mask=0), True)
    say("pending", pending(sock), "ECONNREFUSED")
    say("then", pending(sock), "ok")
    sock.connect(far(net))
    sock.send(b"fine")
    say("elsewhere", outcome(sock.recv, 10), "fine")


@both
def closed_port_unconnected(net: Net) -> None:
    """Only who asks for errors hears of them, with everything that the ICMP message said."""
    sock = udp(net, 0.5)
    sock.sendto(b"x", (net.peer, PORTS["closed"]))
    say("recv", outcome(sock.recv, 10))
    if net.version == 4:
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
    sock.sendto(b"payload", (net.peer, PORTS["closed"]))
    say("poll", "ERR" in poll(sock, mask=0), True)
    say("recv", outcome(sock.recv, 10), "ECONNREFUSED")
    data, control, flags, target = sock.recvmsg(100, 200, socket.MSG_ERRQUEUE)
    number, origin, kind, code = struct.unpack_from("=IBBB", control[0][2])
    four = net.version == 4
    at, size = (20, 4) if four else (24, 16)
    offender = socket.inet_ntop(net.family, control[0][2][at : at + size])
    say("data", data.decode(), "payload")
    say("flags", flags == socket.MSG_ERRQUEUE)
    say("target", mask(target, (PORTS["closed"], "closed")))
    want = ["ECONNREFUSED", 2, 3, 3] if four else ["ECONNREFUSED", 3, 1, 4]
    say("error", [name(number), origin, kind, code], want)
    say("offender", offender, net.peer)


@both
def routes_that_lead_nowhere(net: Net) -> None:
    for want, host in net.nowhere.items():
        say(f"connect {want}", outcome(udp(net).connect, (host, 9)), want)


@probe
def unreachable_behind_a_router() -> None:
    host = json.loads(os.environ["SITE"])["unreachable4"]
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(1)
    sock.connect((host, 9))
    sock.setsockopt(
        socket.IPPROTO_IP, IP_RECVERR, 1
    )  # else such an error is not a socket's business
    said: object = ""
    for _ in range(8):  # a router says so once a second
        if isinstance(said := outcome(sock.send, b"x"), str):
            break
        if (said := outcome(sock.recv, 10)) != "TimeoutError":
            break
    say("error", said, "EHOSTUNREACH")


@both
def sizes(net: Net) -> None:
    sock = connected(net)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
    for size in (0, 1, 1000, 1452, 1453, 1472, 1473, 9000, 40000, 65487, 65507):
        data = os.urandom(size)
        say(f"send {size}", outcome(sock.send, data), size)
        # On a busy machine a datagram may be lost: it is the third time that tells.
        for _ in range(2):
            if poll(sock, mask=1, seconds=1) != "-":
                break
            sock.send(data)
        say(f"came {size}", sock.recv(70000) == data, True)
        while poll(sock, mask=1, seconds=0) != "-":
            sock.recv(70000)
    say("too long", outcome(sock.send, bytes(65536)), "EMSGSIZE")


@both
def path_mtu(net: Net) -> None:
    sock = connected(net)
    if net.version == 4:
        level, mtu, discover = socket.IPPROTO_IP, IP_MTU, IP_MTU_DISCOVER
    else:
        level, mtu, discover = socket.IPPROTO_IPV6, IPV6_MTU, IPV6_MTU_DISCOVER
    say("mtu", sock.getsockopt(level, mtu))
    sock.setsockopt(level, discover, PMTUDISC_DO)
    say("fits", outcome(sock.send, bytes(1400)), 1400)
    say("echo", len(sock.recv(9000)), 1400)
    say("too long", outcome(sock.send, bytes(3000)), "EMSGSIZE")


@both
def truncation_and_peek(net: Net) -> None:
    sock = connected(net)
    sock.send(b"0123456789")
    say("peek", outcome(sock.recv, 4, socket.MSG_PEEK), "0123")
    data, _, flags, _ = sock.recvmsg(4, 0, socket.MSG_PEEK | socket.MSG_TRUNC)
    say("length", [data.decode(), flags & socket.MSG_TRUNC != 0])
    data, _, flags, sender = sock.recvmsg(6)
    say("cut", [data.decode(), flags & socket.MSG_TRUNC != 0], ["012345", True])
    say("sender", mask(sender, (PORTS["datagrams"], "far")))
    say("rest", now(sock), "EAGAIN")
    sock.send(b"0123456789")
    poll(sock, mask=1)
    buffer = ctypes.create_string_buffer(4)
    say("whole length", raw("recv", sock.fileno(), buffer, 4, socket.MSG_TRUNC), 10)
    sock.send(b"")
    say("empty", outcome(sock.recv, 10), "")
    say("poll", poll(sock, seconds=0))


class Iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class Message(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("iov", ctypes.POINTER(Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("gap", ctypes.c_int),
        ("len", ctypes.c_uint),
        ("end", ctypes.c_uint),
    ]


kept: list[object] = []


def messages(buffers: list[Any], address: bytes = b"") -> Any:
    array = (Message * len(buffers))()
    rooms = (Iovec * len(buffers))(*(Iovec(ctypes.addressof(b), len(b)) for b in buffers))
    name_ = ctypes.create_string_buffer(address, len(address)) if address else None
    for i, message in enumerate(array):
        message.iov = ctypes.pointer(rooms[i])
        message.iovlen = 1
        if name_ is not None:
            message.name = ctypes.addressof(name_)
            message.namelen = len(address)
    kept.append((buffers, rooms, name_))
    return array


@both
def many_at_once(net: Net) -> None:
    """sendmmsg(2) and recvmmsg(2), connected and not."""
    for address in (b"", net.raw(*far(net))):
        sock = udp(net)
        if not address:
            sock.connect(far(net))
        sock.settimeout(None)
        texts = [b"number %d" % number for number in range(20)]
        out = messages([ctypes.create_string_buffer(text, len(text)) for text in texts], address)
        say("sent", raw("sendmmsg", sock.fileno(), out, 20, 0), 20)
        got: list[bytes] = []
        while len(got) < 20 and poll(sock, mask=1, seconds=10) != "-":
            rooms = [ctypes.create_string_buffer(100) for _ in range(8)]
            back = messages(rooms)
            count = raw("recvmmsg", sock.fileno(), back, 8, socket.MSG_DONTWAIT, None)
            if not isinstance(count, int):
                break
            got += [rooms[i].raw[: back[i].len] for i in range(count)]
        say("came", sorted(got) == sorted(texts), True)


@both
def segmentation(net: Net) -> None:
    sock = connected(net)
    sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
    say("send", outcome(sock.send, bytes(5500)), 5500)
    say("came", sorted(len(sock.recv(70000)) for _ in range(6)), [500, *[1000] * 5])
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 700))]
    say("send", outcome(sock.sendmsg, [bytes(1500)], control), 1500)
    say("came", sorted(len(sock.recv(70000)) for _ in range(3)), [100, 700, 700])
    say(
        "too many",
        outcome(sock.sendmsg, [bytes(60000)], [(17, UDP_SEGMENT, struct.pack("=H", 10))]),
    )


@both
def coalescing(net: Net) -> None:
    sock = connected(net)
    sock.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    sock.send(b"many 20 1200")
    count = 0
    while count < 24000:
        count += len(sock.recv(70000))
    say("bytes", count, 24000)


@both
def elsewhere_than_connected(net: Net) -> None:
    sock = udp(net)
    sock.connect((net.peer, PORTS["closed"]))
    say("sendto", outcome(sock.sendto, b"hello", far(net)), 5)
    say("not for us", now(sock), "EAGAIN")
    other = connected(net)
    other.connect((net.peer, PORTS["closed"]))
    say("changed", mask(other.getpeername(), (PORTS["closed"], "closed")))
    raw("connect", other.fileno(), ctypes.c_char_p(bytes(16)), 16)
    say("dissolved", outcome(other.getpeername), "ENOTCONN")
    other.sendto(b"free", far(net))
    say("echo", outcome(other.recv, 10), "free")


@both
def wrong_addresses(net: Net) -> None:
    sock = udp(net)
    say("no destination", outcome(sock.send, b"x"), "EDESTADDRREQ")
    say("port 0", outcome(sock.sendto, b"x", (net.peer, 0)), "EINVAL")
    say("connect port 0", outcome(sock.connect, (net.peer, 0)))
    raw_address = net.raw(*far(net))
    say("short", raw("connect", sock.fileno(), ctypes.c_char_p(raw_address), 8), "EINVAL")
    family = (99).to_bytes(2, "little") + raw_address[2:]
    say(
        "family",
        raw("connect", sock.fileno(), ctypes.c_char_p(family), len(family)),
        "EAFNOSUPPORT",
    )
    say("listen", outcome(sock.listen), "EOPNOTSUPP")


@both
def loopback(net: Net) -> None:
    server, client = udp(net), udp(net)
    server.bind((net.loop, 0))
    client.connect(server.getsockname()[:2])
    say("local", mask(client.getsockname()), f"{net.loop} *")
    client.send(b"hello")
    data, sender = server.recvfrom(100)
    say("sender", sender == client.getsockname(), True)
    server.sendto(data, sender)
    say("echo", outcome(client.recv, 10), "hello")
    server.close()
    client.send(b"hello")
    say("closed", outcome(client.recv, 10), "ECONNREFUSED")


@probe
def broadcast() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    say("sendto", outcome(sock.sendto, b"x", ("255.255.255.255", 9)), "EACCES")
    say("connect", outcome(sock.connect, ("255.255.255.255", 9)), "EACCES")


@both
def server(net: Net) -> None:
    """The world sends to a port of this host: true addresses, both ways."""
    world = Far()
    sock = udp(net)
    sock.bind((net.any, 0))
    port = sock.getsockname()[1]
    if net.version == 4:
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    name_ = token()
    world.ask(
        op="dial later", datagrams=True, token=name_, host=net.host, port=port, say=["one", "two"]
    )
    sender = None
    for text in (b"one", b"two"):
        data, control, _, sender = sock.recvmsg(100, 200)
        at = control[0][2]
        called = socket.inet_ntop(net.family, at[8:12] if net.version == 4 else at[:16])
        say("came", [data == text, called], [True, net.host])
        sock.sendto(b"re " + data, sender)
    answer: Any = world.box(name_)
    say("answers", answer["got"], ["re one", "re two"])
    say("end", answer.get("end"))
    say("true address", list(sender or ())[:2] == answer["me"], True)
    sock.close()
    world.close()


@both
def server_that_connects(net: Net) -> None:
    """A socket of its own for one client, beside the one that all call."""
    world = Far()
    sock = udp(net)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((net.any, 0))
    port = sock.getsockname()[1]
    name_ = token()
    world.ask(
        op="dial later", datagrams=True, token=name_, host=net.host, port=port, say=["one", "two"]
    )
    data, sender = sock.recvfrom(100)
    own = udp(net)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    say("bind", outcome(own.bind, (net.any, port)), "ok")
    say("connect", outcome(own.connect, sender[:2]), "ok")
    own.send(b"re " + data)
    say("came", outcome(own.recv, 100), "two")
    own.send(b"re two")
    answer: Any = world.box(name_)
    say("answers", answer["got"], ["re one", "re two"])
    world.close()


@both
def server_has_ended(net: Net) -> None:
    world = Far()
    sock = udp(net)
    sock.bind((net.any, 0))
    port = sock.getsockname()[1]
    sock.close()
    # The end is noticed a moment later where somebody else holds the port.
    for _ in range(50):
        answer = world.ask(op="datagram", host=net.host, port=port, say=["hello"], seconds=0.1)
        if answer.get("end") != "timeout":
            break
    say("end", answer.get("end"), "ECONNREFUSED")
    again = udp(net)
    say("free", outcome(again.bind, (net.any, port)), "ok")
    world.close()


@both
def sharing(net: Net) -> None:
    for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        one, two = udp(net), udp(net)
        for sock in (one, two) if option else ():
            sock.setsockopt(socket.SOL_SOCKET, option or 0, 1)
        one.bind((net.any, 0))
        say(
            f"second {option}",
            outcome(two.bind, one.getsockname()[:2]),
            "ok" if option else "EADDRINUSE",
        )
        third = udp(net)
        say("third", outcome(third.bind, one.getsockname()[:2]), "EADDRINUSE")
        for sock in (one, two, third):
            sock.close()


@probe
def both_families() -> None:
    """A socket of :: takes IPv4 too, unless IPV6_V6ONLY."""
    site = json.loads(os.environ["SITE"])
    if "host6" not in site:
        return
    world = Far()
    for only in (0, 1):
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.settimeout(5)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        sock.bind(("::", 0))
        port = sock.getsockname()[1]
        hosts = [site["host6"]] if only else [site["host4"], site["host6"]]
        for host in hosts:
            name_ = token()
            world.ask(op="dial later", datagrams=True, token=name_, host=host, port=port, say=["x"])
            data, sender = sock.recvfrom(100)
            say("sender", mask(sender))
            sock.sendto(data, sender)
            answer: Any = world.box(name_)
            say("answer", answer["got"], ["x"])
        if only:
            answer = world.ask(op="datagram", host=site["host4"], port=port, say=["x"], seconds=0.5)
            say("IPv4", answer.get("end"), "ECONNREFUSED")
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.connect((f"::ffff:{site['peer4']}", PORTS["datagrams"]))
    say("local", mask(sock.getsockname()), f"::ffff:{site['host4']} *")
    sock.send(b"mapped")
    say("echo", outcome(sock.recv, 10), "mapped")
    world.close()


@both
def flags_and_waiting(net: Net) -> None:
    sock = connected(net, 0.2)
    say("nothing yet", now(sock), "EAGAIN")
    say("poll", poll(sock, seconds=0), "OUT")
    sock.send(b"now")
    say("poll", "IN" in poll(sock, mask=1), True)
    say("out of band", outcome(sock.send, b"x", socket.MSG_OOB))
    sock.shutdown(socket.SHUT_RD)
    say("after shutdown", now(sock))
    say("more", outcome(sock.send, b"part", socket.MSG_MORE), 4)
    say("whole", outcome(sock.send, b"s"), 1)


@both
def inherited(net: Net) -> None:
    sock = connected(net)
    pid = os.fork()
    if pid == 0:
        sock.send(b"child")
        os._exit(0)
    os.waitpid(pid, 0)
    say("echo", outcome(sock.recv, 10), "child")
    copy = sock.dup()
    sock.close()
    copy.settimeout(5)
    copy.send(b"copy")
    say("dup", outcome(copy.recv, 10), "copy")


if __name__ == "__main__":
    main()
