"""In a domU: what each extension of docs/reference/extensions.md is for, once, by XenSock's frontend, whose other end
is extensions.py. It prints NAME ok, or NAME failed: WHY. extensions-inside.py ADDRESS

`shared-rings` is the one that is not offered between domains: no page of a backend's process can be a guest's there.
Two sockets of one domU are joined all the same, by copying. What `hops` is for, an end to circles, needs backends that
pass calls on; here a backend takes a call that was passed on, and without the extension it does not.
"""

import contextlib
import errno
import hashlib
import select
import socket
import struct
import sys
import time
import traceback

from peer import ECHO, SINK

import xensock
from xensock import _core
from xensock.calls.address import Endpoint
from xensock.client.attachment import open_link
from xensock.client.explaining import explanation_of
from xensock.pvcalls.frontend import Frontend
from xensock.transport import url
from xensock.wire import requests
from xensock.wire.extensions import ALL, V1, Extension

ADDRESS = sys.argv[1]
SIX, PATH = "2001:db8::1", b"/tmp/extensions.socket"
WHO, UDP, URGENT, KEPT, ASK, FULL, DENIED = 7010, 7011, 7012, 7013, 7014, 7016, 7999
RECVTTL, LARGE = 12, (10, 13)
link = open_link("xen:", "extensions")


def made(family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=0, **how):
    sock = xensock.socket(family, kind, protocol, link=link, **how)
    sock.settimeout(60)
    return sock


def connected(port, address=ADDRESS, **how):
    sock = made(socket.AF_INET6 if ":" in address else socket.AF_INET, **how)
    sock.connect((address, port))
    return sock


def exactly(sock, size):
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, data
        data += more
    return data


def echoes(sock, data=b"over the border"):
    sock.sendall(data)
    assert exactly(sock, len(data)) == data


def told(word):
    """What the other end says to a word."""
    with connected(ASK) as sock:
        sock.sendall(word)
        return b"".join(iter(lambda: sock.recv(200), b"")).decode()


def ready(sock, events, seconds):
    poll = select.poll()
    poll.register(sock, events)
    return sum(found for _, found in poll.poll(seconds * 1000))


def word(sock, offset):
    """Of the indexes page."""
    return struct.unpack_from("<I", sock._held._pages.indexes, offset)[0]


def filled(sock):
    """Send until nothing is taken any more; how much was, and its sum."""
    digest, size, block = hashlib.sha256(), 0, hashlib.sha256(b"full").digest() * 2048
    sock.setblocking(False)
    while ready(sock, select.POLLOUT, 2):
        with contextlib.suppress(BlockingIOError):
            count = sock.send(block)
            digest.update(block[:count])
            size += count
    return f"{size} {digest.hexdigest()}"


def soon(check):
    end = time.monotonic() + 20
    while not check():
        assert time.monotonic() < end
        time.sleep(0.01)


def ret(request):
    return link.frontend.submit(request).result(60).ret


def by_hand(to):
    """A stream without a program's end, to an address or a path: its id, pages and ring. Or the error."""
    front = link.frontend
    pages, id = front.data_ring(3), front.new_id()
    family = socket.AF_UNIX if isinstance(to, bytes) else socket.AF_INET
    assert ret(requests.Socket(id, family, socket.SOCK_STREAM, 0)) == 0
    address, where = b"", None
    if isinstance(to, bytes):
        page, raw = front.session.allocate(1), struct.pack("<H", family) + to
        page.memory[: len(raw)] = raw
        where = requests.PageAddress(family, page.refs[0], len(raw))
    else:
        address = Endpoint.from_python(to).sockaddr()
    error = ret(requests.Connect(id, address, 0, pages.ref, pages.port, where))
    ring = _core.DataRing(pages.indexes, pages.data, "front", True, True)
    return error or (id, pages, ring)


def data_events():
    """Who has read everything says which byte it waits for: the next one."""
    with connected(ECHO) as sock:
        for _ in range(50):
            echoes(sock)
        soon(lambda: word(sock, 16) == word(sock, 0) + 1 == 751)
        soon(lambda: word(sock, 80) == word(sock, 68) + 1 == 751)


def shutdown():
    with connected(SINK) as sock:
        sock.sendall(b"x" * 1000)
        sock.shutdown(socket.SHUT_WR)
        assert exactly(sock, 5) == b"1000 "


def names():
    with connected(WHO) as sock:
        assert sock.recv(100).decode() == repr(sock.getsockname())
        assert sock.getpeername() == (ADDRESS, WHO)


def options():
    """One that the far end sees, and one that is too long for an answer."""
    with made(kind=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 44)
        assert sock.getsockopt(socket.IPPROTO_IP, socket.IP_TTL) == 44
        sock.sendto(b"ttl", (ADDRESS, UDP))
        assert sock.recv(100) == b"44 ttl"
    with connected(ECHO) as sock:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
        assert len(info) > 100
        assert info[0] == 1  # TCP_ESTABLISHED


def ipv6():
    with connected(ECHO, SIX) as sock:
        assert sock.getpeername()[0] == SIX
        echoes(sock)


def async_connect():
    """To a listener whose queue is full; others go on meanwhile."""
    with made() as sock:
        sock.setblocking(False)
        assert sock.connect_ex((ADDRESS, FULL)) == errno.EINPROGRESS
        with connected(ECHO) as other:
            echoes(other)
        assert not ready(sock, select.POLLOUT, 0)
        assert sock.connect_ex((ADDRESS, FULL)) == errno.EALREADY
        assert told(b"accept") == "ok"
        assert ready(sock, select.POLLOUT, 60) == select.POLLOUT
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert sock.getpeername() == (ADDRESS, FULL)


def close():
    """The answer comes though nobody takes what was sent; all of it arrives. Then one that ends by a reset."""
    id, pages, ring = by_hand((ADDRESS, KEPT))
    digest, size, block = hashlib.sha256(), 0, hashlib.sha256(b"closed").digest() * 2048
    while True:
        pages.event.clear()
        count, notify = ring.write(block)
        digest.update(block[:count])
        size += count
        if notify:
            pages.event.notify()
        if not count and not ring.arm_write() and not ready(pages.event.wait_fd, select.POLLIN, 2):
            break
    assert ret(requests.Close(id)) == 0
    pages.data[:] = bytes(len(pages.data))  # they are ours again
    assert told(b"drain ") == f"{size} {digest.hexdigest()}"
    ring.close()
    with connected(KEPT) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert told(b"reset ") == "ECONNRESET"
    return size


def datagrams():
    with made(kind=socket.SOCK_DGRAM) as sock:
        sock.sendto(b"d" * 1400, (ADDRESS, UDP))
        assert sock.recvfrom(2000) == (b"64 " + b"d" * 1400, (ADDRESS, UDP))


def icmp_echo():
    with made(kind=socket.SOCK_DGRAM, protocol=socket.IPPROTO_ICMP) as sock:
        sock.sendto(struct.pack(">BBHHH", 8, 0, 0, 0, 77) + b"ping", (ADDRESS, 0))
        answer = sock.recv(100)
        assert (answer[0], answer[6:]) == (0, struct.pack(">H", 77) + b"ping")


def resolved(name):
    labels = b"".join(bytes([len(part)]) + part for part in name.split(b"."))
    question = struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1"
    return link.name_service().ask(question).result(60)


def resolve():
    answer, why = resolved(b"good.test")
    assert answer[:2] == b"\0\7"
    assert answer.endswith(socket.inet_aton("198.51.100.9"))
    assert why.allowed
    answer, why = resolved(b"bad.test")
    assert answer[3] & 15 == 3  # NXDOMAIN
    assert (why.allowed, why.rule, why.hint) == (False, "bad.test", "remove --deny bad.test"), why


def explain():
    rule = f"{ADDRESS}:{DENIED}"
    with made() as sock:
        assert sock.connect_ex((ADDRESS, DENIED)) == errno.EACCES
        why = explanation_of(sock._held)
        assert (why.allowed, why.rule, why.hint) == (False, rule, f"remove --deny {rule}"), why
        return why.hint


def unix():
    """Not by Python's sockets: paths are for programs whose calls are taken."""
    assert by_hand(PATH + b"x") == -errno.EACCES
    id, pages, ring = by_hand(PATH)
    ring.write(b"by a path")
    pages.event.notify()
    got = b""
    while got != b"by a path":
        pages.event.clear()
        data, _ = ring.read(100)
        got += data
        assert data or ring.arm_read() or ready(pages.event.wait_fd, select.POLLIN, 20), got
    assert ret(requests.Release(id)) == 0
    ring.close()


def large_rings():
    """The smallest and the largest, full: how much lies in each. All of it arrives."""
    lie = []
    for order in LARGE:
        before, link.order = link.order, order
        try:
            sock = connected(KEPT)
        finally:
            link.order = before
        with sock:
            sent = filled(sock)
            lie.append((word(sock, 68) - word(sock, 64)) & 0xFFFFFFFF)
            sock.shutdown(socket.SHUT_WR)
            assert told(b"drain ") == sent
    return "{} {}".format(*lie)


def joined():
    """Not by shared pages, which no backend offers here: bytes of two sockets of this domU are copied."""
    assert Extension.SHARED_RINGS not in link.frontend.features
    with made() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen(1)
        with connected(listener.getsockname()[1]) as one, listener.accept()[0] as two:
            one.sendall(b"to oneself")
            assert exactly(two, 10) == b"to oneself"
            echo = hashlib.sha256(b"back").digest() * 1000
            two.sendall(echo)
            assert exactly(one, len(echo)) == echo


def hops():
    with connected(ECHO, hops=3) as sock:
        echoes(sock)


def packet_info():
    """What IP says of one datagram, out and in."""
    with made(kind=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, RECVTTL, 1)
        ttl = [(socket.IPPROTO_IP, socket.IP_TTL, struct.pack("i", 33))]
        sock.sendmsg([b"info"], ttl, 0, (ADDRESS, UDP))
        data, found, _, _ = sock.recvmsg(100, 100)
        assert data == b"33 info"
        assert found == [(socket.IPPROTO_IP, socket.IP_TTL, struct.pack("i", 64))]


def urgent():
    with connected(URGENT) as sock:
        sock.settimeout(None)  # else Python waits for bytes that are not urgent
        sock.send(b"ab!", socket.MSG_OOB)
        found = ready(sock, select.POLLPRI, 60)
        assert found == select.POLLPRI, found
        assert sock.recv(1, socket.MSG_OOB) == b"?"
        assert exactly(sock, 13) == b"ab and !later"


def command_ring():
    """More commands wait in it than a ring of one page has slots."""
    front = link.frontend
    waiting = []
    for _ in range(40):
        id = front.new_id()
        assert ret(requests.Socket(id, socket.AF_INET, socket.SOCK_STREAM, 0)) == 0
        assert ret(requests.Bind(id, struct.pack("<H", socket.AF_INET) + bytes(14))) == 0
        assert ret(requests.Listen(id, 1)) == 0
        waiting.append((id, front.submit(requests.Poll(id))))
    produced, _, answered = struct.unpack_from("<III", front._pages.memory)
    assert produced - answered >= 40, (produced, answered)
    with connected(ECHO) as sock:
        echoes(sock)
    for id, poll in waiting:
        assert ret(requests.Release(id)) == 0
        poll.result(60)
    return str(produced - answered)


def without():
    """In a session that asks for none of them a call that was passed on, options and paths do not exist."""
    link.close()
    plain = Frontend(url.connect("xen:", timeout=60), wanted=V1)
    tries = (
        requests.Socket(1, socket.AF_INET, socket.SOCK_STREAM, 0, 3),
        requests.Socket(2, socket.AF_UNIX, socket.SOCK_STREAM, 0),
        requests.Socket(3, socket.AF_INET, socket.SOCK_DGRAM, 0),
    )
    assert [plain.submit(each).result(60).ret for each in tries] == [-524] * 3
    assert plain.submit(requests.Socket(4, 2, 1, 0)).result(60).ret == 0
    plain.close()


EACH = {
    Extension.DATA_EVENTS: data_events, Extension.SHUTDOWN: shutdown, Extension.NAMES: names,
    Extension.OPTIONS: options, Extension.IPV6: ipv6, Extension.ASYNC_CONNECT: async_connect,
    Extension.CLOSE: close, Extension.DATAGRAMS: datagrams, Extension.ICMP_ECHO: icmp_echo,
    Extension.RESOLVE: resolve, Extension.EXPLAIN: explain, Extension.UNIX: unix,
    Extension.LARGE_RINGS: large_rings, Extension.SHARED_RINGS: joined, Extension.HOPS: hops,
    Extension.PACKET_INFO: packet_info, Extension.URGENT: urgent,
}  # fmt: skip
assert EACH.keys() == ALL
for name, what in {**EACH, "command-ring": command_ring, "without": without}.items():
    try:
        start = time.monotonic()
        more = what() or ""
        print(name, "ok", more, flush=True)
    except Exception as error:
        print(name, "failed:", repr(error), f"{time.monotonic() - start:.1f} s", flush=True)
        traceback.print_exc()
