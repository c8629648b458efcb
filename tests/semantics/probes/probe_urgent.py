"""Urgent data: the mark, the byte, and who is told (tcp(7))."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket

from kit import PORTS, Far, Net, both, main, outcome, poll, read, read_all, say, token, wait_for

SIOCATMARK = 0x8905
PRI = 2


def at_mark(sock: socket.socket) -> bool:
    return fcntl.ioctl(sock, SIOCATMARK, bytes(4)) != bytes(4)


def urgent(sock: socket.socket, flags: int = 0) -> object:
    """What MSG_OOB gives, or the errno."""
    got: list[bytes] = []
    result = outcome(lambda: got.append(sock.recv(8, socket.MSG_OOB | flags)))
    return got[0].decode() if got else result


def asked(net: Net) -> socket.socket:
    """A connection on which "ab", an urgent "!" and "cd" came."""
    sock = net.far("urgent")
    sock.sendall(b"go\n")
    say("told", poll(sock, PRI), "PRI")
    return sock


@both
def none(net: Net) -> None:
    sock = net.far("echo")
    say("byte", urgent(sock), "EINVAL")
    say("mark", at_mark(sock), False)
    with net.socket() as fresh:
        say("of a fresh one", urgent(fresh), "EINVAL")


@both
def at_the_mark(net: Net) -> None:
    sock = asked(net)
    say("reading stops", sock.recv(10).decode(), "ab")
    say("mark", at_mark(sock), True)
    say("looked at", urgent(sock, socket.MSG_PEEK), "!")
    say("byte", urgent(sock), "!")
    say("once", urgent(sock), "EINVAL")
    say("still at the mark", at_mark(sock), True)
    say("behind", read(sock, 2).decode(), "cd")
    say("passed", at_mark(sock), False)


@both
def skipped(net: Net) -> None:
    sock = asked(net)
    say("before", sock.recv(10).decode(), "ab")
    say("behind", read(sock, 2).decode(), "cd")
    say("gone", urgent(sock), "EINVAL")


@both
def inline(net: Net) -> None:
    sock = net.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    sock.connect((net.peer, PORTS["urgent"]))
    sock.sendall(b"go\n")
    say("told", poll(sock, PRI), "PRI")
    say("byte", urgent(sock), "EINVAL")
    say("before", sock.recv(10).decode(), "ab")
    say("mark", at_mark(sock), True)
    say("behind", read(sock, 3).decode(), "!cd")
    say("passed", at_mark(sock), False)


@both
def owner(net: Net) -> None:
    """SIGURG for who said F_SETOWN."""
    seen: list[int] = []
    signal.signal(signal.SIGURG, lambda number, _frame: seen.append(number))
    sock = net.far("urgent")
    fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
    sock.sendall(b"go\n")
    say("signal", wait_for(lambda: seen), True)
    say("told", poll(sock, PRI), "PRI")
    say("before", read(sock, 2).decode(), "ab")


@both
def sent(net: Net) -> None:
    sock = net.far("hear")
    sock.sendall(b"ab")
    say("sent", sock.send(b"c!", socket.MSG_OOB), 2)
    sock.sendall(b"de")
    sock.shutdown(socket.SHUT_WR)
    say("they heard", json.loads(read_all(sock)), ["abc", "!", "de"])


@both
def accepted(net: Net) -> None:
    listener = net.listener(net.any)
    far, box = Far(), token()
    port = listener.getsockname()[1]
    far.ask(op="dial later", token=box, host=net.host, port=port, say="ab", urgent="!")
    sock, _ = listener.accept()
    say("told", poll(sock, PRI), "PRI")
    say("before", read(sock, 2).decode(), "ab")
    say("mark", at_mark(sock), True)
    say("byte", urgent(sock), "!")
    say("the end", read_all(sock).decode(), "")


main()
