"""In dom0: the far end of extensions-inside.py, which uses every extension over real grants. extensions.py KIND CPUS"""

import contextlib
import errno
import hashlib
import select
import socket
import sys
import threading
import time
from pathlib import Path

from dom0 import ADDRESS, Failed, Scenario, run, say, until
from peer import ECHO, echo, serve

kind, cpus = sys.argv[1:]
WHO, UDP, URGENT, KEPT, ASK, FULL = 7010, 7011, 7012, 7013, 7014, 7016
SIX, PATH, RECVTTL = "2001:db8::1", "/tmp/extensions.socket", 12
kept = []


def exactly(sock, size):
    return sock.recv(size, socket.MSG_WAITALL)


def who(sock):
    sock.sendall(repr(sock.getpeername()).encode())


def urgent(sock):
    """Tells which byte was the urgent one, and sends one itself."""
    poll = select.poll()
    poll.register(sock, select.POLLPRI)
    assert poll.poll(60_000), "nothing urgent"
    mark = sock.recv(1, socket.MSG_OOB)
    sock.send(exactly(sock, 2) + b" and " + mark + b"?", socket.MSG_OOB)
    sock.send(b"later")
    sock.recv(1)  # until it is closed


def ask(sock):
    """What the domU wants to happen here, and to know."""
    word = exactly(sock, 6)
    if word == b"drain ":  # to the end of the stream
        with kept.pop() as other:
            digest, size = hashlib.sha256(), 0
            while data := other.recv(1 << 18):
                digest.update(data)
                size += len(data)
        sock.sendall(b"%d %s" % (size, digest.hexdigest().encode()))
    elif word == b"reset ":
        with kept.pop() as other:
            try:
                sock.sendall(b"%d bytes" % len(other.recv(10)))
            except OSError as error:
                sock.sendall(errno.errorcode[error.errno].encode())
    elif word == b"accept":
        threading.Thread(target=accept_all, daemon=True).start()
        sock.sendall(b"ok")


def accept_all():
    while True:
        others.append(full.accept()[0])


def keep():
    listener = socket.create_server((ADDRESS, KEPT))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    while True:
        kept.append(listener.accept()[0])


def datagrams():
    """Each is sent back, behind the TTL that it came with."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((ADDRESS, UDP))
        sock.setsockopt(socket.IPPROTO_IP, RECVTTL, 1)
        while True:
            data, told, _, sender = sock.recvmsg(2000, 100)
            sock.sendto(b"%d " % int.from_bytes(told[0][2], sys.byteorder) + data, sender)


def names():
    """Every name has one address of IPv4."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((ADDRESS, 53))
        while True:
            asked, sender = sock.recvfrom(2000)
            end = asked.index(b"\0", 12) + 5
            found = asked[end - 4 : end - 2] == b"\0\1"
            head = asked[:2] + b"\x81\x80\0\1" + bytes((0, found)) + bytes(4)
            answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("198.51.100.9")
            sock.sendto(head + asked[12:end] + answer * found, sender)


def six():
    with socket.create_server((SIX, ECHO), family=socket.AF_INET6) as listener:
        while True:
            with listener.accept()[0] as sock:
                echo(sock)


def at_a_path():
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(PATH)
        listener.listen()
        while True:
            with listener.accept()[0] as sock:
                echo(sock)


with Scenario(f"extensions-{kind}-{cpus}") as scenario, contextlib.ExitStack() as stack:
    try:
        start = time.monotonic()
        run("ip", "address", "replace", f"{SIX}/128", "dev", "lo")
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
        Path("/etc/resolv.conf").write_text(f"nameserver {ADDRESS}\n")
        Path(PATH).unlink(missing_ok=True)
        full = stack.enter_context(socket.socket())
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind((ADDRESS, FULL))
        full.listen(0)
        others = [stack.enter_context(socket.socket()) for _ in range(3)]
        for other in others:
            other.setblocking(False)
            other.connect_ex((ADDRESS, FULL))
        for what in (keep, datagrams, names, six, at_a_path):
            threading.Thread(target=what, daemon=True).start()
        for port, what in ((WHO, who), (URGENT, urgent), (ASK, ask)):
            threading.Thread(target=serve, args=(ADDRESS, port, what), daemon=True).start()
        scenario.backend(
            "xensock", "--allow", "any", "--allow", "listen:any", "--allow", f"unix:{PATH}",
            "--deny", f"{ADDRESS}:7999", "--deny", "bad.test",
        )  # fmt: skip
        guest = scenario.domain("guest", kind, cpus, "extensions.sh", 'pvcalls = ["backend=0"]')
        guest.wait("^DOMU-DONE", 240)
        until("domain gone", lambda: not guest.alive(), 60)
        say(f"done after {time.monotonic() - start:.0f} s")
    except Failed as failed:
        say("FAILED", failed)
