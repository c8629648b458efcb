"""Many of everything: no descriptor, port or memory may leak."""

from __future__ import annotations

import os
import resource
import socket

from kit import PORTS, Net, both, echo, main, outcome, poll, say


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@both
def open_and_close(net: Net) -> None:
    """10,000 sockets, one after the other."""
    before = descriptors()
    numbers = set()
    for _ in range(10_000):
        sock = net.socket()
        numbers.add(sock.fileno())
        sock.close()
    say("one number", len(numbers), 1)
    say("leaked", descriptors() - before, 0)


@both
def connect_in_a_row(net: Net) -> None:
    """2,000 connections, each used."""
    before = descriptors()
    failed = []
    for turn in range(2000):
        with net.socket() as sock:
            result = outcome(sock.connect, (net.peer, PORTS["echo"]))
            if result != "ok" or echo(sock, b"%d" % turn) != str(turn):
                failed.append([turn, result])
    say("failed", failed, [])
    say("leaked", descriptors() - before, 0)


@both
def loopback_in_a_row(net: Net) -> None:
    """500 connections to the program's own listener."""
    before = descriptors()
    listener = net.listener(net.loop)
    failed = []
    for turn in range(500):
        with net.socket() as sock:
            result = outcome(sock.connect, listener.getsockname())
            if result != "ok":
                failed.append([turn, result])
                continue
            conn, _ = listener.accept()
            with conn:
                conn.sendall(b"x")
                if sock.recv(1) != b"x":
                    failed.append([turn, "silent"])
    listener.close()
    say("failed", failed, [])
    say("leaked", descriptors() - before, 0)


@both
def listen_in_a_row(net: Net) -> None:
    before = descriptors()
    failed = [
        outcome(listener.accept)
        for listener in (net.listener() for _ in range(300))
        if listener.setblocking(False) or outcome(listener.accept) != "EAGAIN" or listener.close()
    ]
    say("failed", failed, [])
    say("leaked", descriptors() - before, 0)


@both
def many_at_once(net: Net) -> None:
    """400 non-blocking connects under way together."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1024), hard))
    socks = [net.socket(socket.SOCK_NONBLOCK) for _ in range(400)]
    started = {outcome(sock.connect, (net.peer, PORTS["echo"])) for sock in socks}
    say("started", sorted(map(str, started)), ["EINPROGRESS"])
    say("writable", sorted({poll(sock, 4) for sock in socks}), ["OUT"])
    for sock in socks:
        sock.setblocking(True)
    say("echo", sorted({echo(sock) for sock in socks}), ["hello"])


@both
def held(net: Net) -> None:
    """300 connections held; a new one works; the old ones still do."""
    socks = [net.far("echo") for _ in range(300)]
    say("new", echo(net.far("echo")), "hello")
    say("old", sorted({echo(sock) for sock in socks}), ["hello"])


main()
