"""Unix sockets within the program's own network: paths in every spelling, who connected, full listeners, signals."""

from __future__ import annotations

import array
import os
import signal
import socket
import struct
import tempfile
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kit import child, echo, main, name, outcome, poll, probe, raw, raw_connect, say, set_timeval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNIX = socket.AF_UNIX
STREAM, DGRAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
PEERPIDFD = 77


@contextmanager
def bound(kind: int = STREAM, backlog: int = 64) -> Iterator[tuple[str, socket.socket]]:
    """A path in a new directory, and the socket that is bound there."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(UNIX, kind) as sock:
        path = f"{directory}/socket"
        sock.bind(path)
        if kind != DGRAM:
            sock.listen(backlog)
        yield path, sock


def connected(path: str | bytes, kind: int = STREAM) -> object:
    with socket.socket(UNIX, kind) as sock:
        return outcome(sock.connect, path)


@probe
def kinds() -> None:
    """Each type of socket reaches its own type only."""
    for kind in (STREAM, DGRAM, SEQPACKET):
        with bound(kind) as (path, sock):
            for other in (STREAM, DGRAM, SEQPACKET):
                right = "ok" if other == kind else "EPROTOTYPE"
                say(f"{kind} to {other}", connected(path, other), right)
            say("name", sock.getsockname() == path, True)


@probe
def spellings() -> None:
    """One socket by many names."""
    with bound() as (path, _):
        directory, base = os.path.split(path)
        os.symlink("socket", f"{directory}/link")
        os.symlink(path, f"{directory}/absolute")
        os.symlink("loop", f"{directory}/loop")
        os.symlink("nowhere", f"{directory}/dangling")
        for link in ("link", "absolute", "loop", "dangling"):
            say(link, connected(f"{directory}/{link}"))
        say("dots", connected(f"{directory}/../{os.path.basename(directory)}/./{base}"), "ok")
        say("slashes", connected(f"//{directory}//{base}"), "ok")
        say("no directory", connected(f"{path}/below"), "ENOTDIR")
        say("not there", connected(f"{directory}/none"), "ENOENT")
        held = os.open(directory, os.O_RDONLY)
        say("by descriptor", connected(f"/proc/self/fd/{held}/{base}"), "ok")
        say("by root", connected(f"/proc/self/root{path}"), "ok")
        os.chdir(directory)
        say("relative", connected(base), "ok")
        say("relative, a link", connected("link"), "ok")
        say("relative, an absolute link", connected("absolute"), "ok")
        say("relative, upwards", connected(f"../{os.path.basename(directory)}/{base}"), "ok")
        os.chdir("/")


@probe
def nobody_there() -> None:
    """What is no socket, a dead one, one that does not listen, one without a permission."""
    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/file", "w"):
            pass
        say("a file", connected(f"{directory}/file"), "ECONNREFUSED")
        say("a directory", connected(directory), "ECONNREFUSED")
        with socket.socket(UNIX, STREAM) as sock:
            sock.bind(f"{directory}/quiet")
            say("bound only", connected(f"{directory}/quiet"), "ECONNREFUSED")
            sock.listen()
            os.chmod(f"{directory}/quiet", 0)
            if os.geteuid():
                say("no permission", connected(f"{directory}/quiet"), "EACCES")
            os.chmod(f"{directory}/quiet", 0o600)
            say("own permission", connected(f"{directory}/quiet"), "ok")
        say("closed", connected(f"{directory}/quiet"), "ECONNREFUSED")


@probe
def addresses() -> None:
    """Structures of every length."""
    with socket.socket(UNIX, STREAM) as sock:
        for size in (0, 1, 2, 3, 110, 111, 128, 129):
            say(f"{size} bytes", raw_connect(sock, b"\1\0/none".ljust(130, b"\0"), size))
        say("without a zero byte", raw_connect(sock, b"\1\0" + b"/" + b"n" * 107, 110))
        say("another family", raw_connect(sock, b"\2\0" + b"\0" * 14))
        say("no memory", raw("connect", sock.fileno(), 1, 110), "EFAULT")
    with bound() as (path, _):
        padded = b"\1\0" + path.encode() + b"\0" + b"x" * 20
        with socket.socket(UNIX, STREAM) as sock:
            say("rest ignored", raw_connect(sock, padded), 0)
            say("again", outcome(sock.connect, path), "EISCONN")
            say("peer", sock.getpeername() == path, True)


@probe
def abstract() -> None:
    """Names without a file, chosen by the program or by the kernel."""
    with socket.socket(UNIX, STREAM) as sock:
        sock.bind(f"\0probe {os.getpid()}")
        sock.listen()
        say("connect", connected(sock.getsockname()), "ok")
        say("unknown", connected(b"\0nobody is called so"), "ECONNREFUSED")
    with socket.socket(UNIX, STREAM) as sock:
        sock.bind("")
        sock.listen()
        say("chosen", connected(sock.getsockname()), "ok")


@probe
def datagrams() -> None:
    """Connected and not; AF_UNSPEC dissolves the connection."""
    with bound(DGRAM) as (path, there), socket.socket(UNIX, DGRAM) as sock:
        say("sendto", outcome(sock.sendto, b"one", path), 3)
        say("connect", outcome(sock.connect, path), "ok")
        say("send", outcome(sock.send, b"two"), 3)
        say("dissolve", raw_connect(sock, struct.pack("=H14x", socket.AF_UNSPEC)), 0)
        say("not connected", outcome(sock.send, b"x"), "ENOTCONN")
        say("got", [there.recv(9).decode(), there.recv(9).decode()], ["one", "two"])


def peer_of(sock: socket.socket) -> list[int]:
    return list(struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))


@probe
def who() -> None:
    """SO_PEERCRED on both sides, also of a child's connection; who sends says so, too (SCM_CREDENTIALS)."""
    with bound() as (path, sock), socket.socket(UNIX, STREAM) as near:
        near.connect(path)
        far, _ = sock.accept()
        ourselves = [os.getpid(), os.getuid(), os.getgid()]
        say("of the client", peer_of(far) == ourselves, True)
        say("of the server", peer_of(near) == ourselves, True)
        room = far.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 6)
        say("six bytes of it", room == struct.pack("=iII", *ourselves)[:6], True)
        with child(lambda: said_by_child(path)) as pid:
            other, _ = sock.accept()
            say("of a child", peer_of(other)[0] == pid, True)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            other.send(b"go")
            data, control, _, _ = other.recvmsg(9, 64)
            say("word", data.decode(), "child")
            say("sender", struct.unpack("=iII", control[0][2])[0] == pid, True)
            other.send(b"end")
    if hasattr(os, "pidfd_open"):
        with bound() as (path, sock), socket.socket(UNIX, STREAM) as near:
            near.connect(path)
            far, _ = sock.accept()
            say("process", process_of(far))


def said_by_child(path: str) -> None:
    with socket.socket(UNIX, STREAM) as sock:
        sock.connect(path)
        sock.recv(9)
        sock.send(b"child")
        sock.recv(9)


def process_of(sock: socket.socket) -> object:
    try:
        (held,) = struct.unpack("=i", sock.getsockopt(socket.SOL_SOCKET, PEERPIDFD, 4))
    except OSError as error:
        return name(error.errno or 0)
    with open(f"/proc/self/fdinfo/{held}") as info:
        return [line.split()[1] == str(os.getpid()) for line in info if line.startswith("Pid:")]


@probe
def descriptors() -> None:
    """A connection over a path carries descriptors."""
    with bound() as (path, sock), socket.socket(UNIX, STREAM) as near:
        near.connect(path)
        far, _ = sock.accept()
        one, two = socket.socketpair()
        near.sendmsg(
            [b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [one.fileno()]))]
        )
        _, control, _, _ = far.recvmsg(9, 64)
        passed = socket.socket(fileno=struct.unpack("=i", control[0][2][:4])[0])
        passed.send(b"through")
        say("through it", two.recv(9).decode(), "through")


def full(path: str) -> list[socket.socket]:
    """Connections until the listener takes no more."""
    held = []
    while True:
        sock = socket.socket(UNIX, STREAM | socket.SOCK_NONBLOCK)
        held.append(sock)
        if sock.connect_ex(path):
            return held


@probe
def full_listener() -> None:
    """A listener that takes no more: EAGAIN, or waiting for as long as SO_SNDTIMEO says, or until there is room."""
    with bound(backlog=1) as (path, sock):
        held = full(path)
        say("how many", len(held))
        say("not waiting", raw_connect(held[-1], b"\1\0" + path.encode() + b"\0"), "EAGAIN")
        with socket.socket(UNIX, STREAM) as late:
            set_timeval(late, socket.SO_SNDTIMEO, 0.2)
            began = time.monotonic()
            say("for some time", raw_connect(late, b"\1\0" + path.encode() + b"\0"), "EAGAIN")
            say("that long", time.monotonic() - began >= 0.19, True)
        with socket.socket(UNIX, STREAM) as late:
            results: list[object] = []
            waiter = threading.Thread(target=lambda: results.append(outcome(late.connect, path)))
            waiter.start()
            waiter.join(0.1)
            say("waits", waiter.is_alive(), True)
            sock.accept()
            waiter.join(10)
            say("then", results, ["ok"])
            say("is connected", poll(late, 4), "OUT")


def interrupted(restart: bool, meanwhile: Callable[[], object]) -> tuple[object, list[int]]:
    caught: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, frame: (caught.append(number), meanwhile()))
    signal.siginterrupt(signal.SIGALRM, not restart)
    with bound(backlog=1) as (path, sock):
        full(path)
        with socket.socket(UNIX, STREAM) as late:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            if restart:
                threading.Timer(0.4, sock.accept).start()
            return raw_connect(late, b"\1\0" + path.encode() + b"\0"), caught


@probe
def signals() -> None:
    """A signal ends the wait, or does not."""
    say("without SA_RESTART", interrupted(False, lambda: None)[0], "EINTR")
    say("with SA_RESTART", interrupted(True, lambda: None)[0], 0)


@probe
def many() -> None:
    """Hundreds of connections, a few at once."""
    with bound(backlog=64) as (path, sock):

        def serve() -> None:
            for _ in range(200):
                far, _ = sock.accept()
                with far:
                    far.sendall(far.recv(16))

        server = threading.Thread(target=serve)
        server.start()
        answers: list[object] = []

        def ask() -> None:
            for _ in range(25):
                with socket.socket(UNIX, STREAM) as near:
                    near.connect(path)
                    answers.append(echo(near))

        askers = [threading.Thread(target=ask) for _ in range(8)]
        for thread in askers:
            thread.start()
        for thread in (*askers, server):
            thread.join()
        say("answers", answers == ["hello"] * 200, True)


if __name__ == "__main__":
    main()
