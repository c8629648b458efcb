"""Tries kinds of sockets for real: `probe.py` with two addresses and a port of echo servers, and the same of servers
that send urgent bytes back, reads {"kinds": [[family, type, protocol], …], "urgent": […]} as JSON from standard input,
and prints what became of each. It has nothing of XenSock, as it runs in guests."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import sys

XENSOCK = 0x5853
INTERNET = (socket.AF_INET, socket.AF_INET6, XENSOCK)
ECHO_REQUEST = {1: 8, 58: 128}
LIMIT_S = 10


def kernel(family, kind, protocol):
    """A socket of the kernel's, or of whoever answers for it. What AF_XENSOCK gives is used as AF_INET6."""
    import _socket

    made = _socket.socket(family, kind, protocol)
    shown = socket.AF_INET6 if family == XENSOCK else family
    return socket.socket(shown, kind, protocol, fileno=made.detach())


def word(error):
    if error.errno == errno.EOPNOTSUPP:
        return "EOPNOTSUPP"  # Linux's name of what Python calls ENOTSUP
    return errno.errorcode.get(error.errno, str(error))


def outcome(make, kind, exchange):
    """A word or an errno's name. `exchange(socket, …)` sends there and back to a far end, or raises; it may give a word
    for "carried"."""
    family, type_, protocol = kind
    try:
        sock = make(family, type_, protocol)
    except OSError as error:
        return word(error)
    with sock:
        if family not in INTERNET:
            return "local"
        sock.settimeout(LIMIT_S)
        try:
            return exchange(sock, kind) or "carried"
        except OSError as error:
            return "not carried: " + word(error)


def refuse(number):
    raise OSError(number, os.strerror(number))


def send_urgent(sock):
    """Three bytes, of which the last is urgent."""
    if sock.send(b"ab!", socket.MSG_OOB) != 3:
        refuse(errno.EIO)


def hear_urgent(sock):
    """What send_urgent() sent, the urgent byte as such."""
    poll = select.poll()
    poll.register(sock, select.POLLPRI)
    if not poll.poll(LIMIT_S * 1000):
        refuse(errno.ETIMEDOUT)
    sock.settimeout(None)  # else Python waits until there are bytes, which an urgent one is not
    if sock.recv(10) != b"ab" or sock.recv(1, socket.MSG_OOB) != b"!":
        refuse(errno.EBADMSG)


def ping(sock, protocol, where):
    """An echo request and its answer."""
    sock.sendto(bytes([ECHO_REQUEST[protocol], 0, 0, 0, 0, 0, 0, 1]) + b"probe", where)
    if not sock.recv(100).endswith(b"probe"):
        refuse(errno.EBADMSG)


def place(kind, address4, address6, port):
    """Where a socket of this kind goes."""
    family, _, protocol = kind
    host = {socket.AF_INET: address4, socket.AF_INET6: address6}.get(family)
    return (host or "::ffff:" + address4, 0 if protocol in ECHO_REQUEST else port)


def far_exchange(address4, address6, port):
    """With echo servers at these addresses."""

    def exchange(sock, kind):
        where = place(kind, address4, address6, port)
        if kind[2] in ECHO_REQUEST:
            ping(sock, kind[2], where)
            return
        sock.connect(where)
        sock.send(b"probe")
        if sock.recv(100) != b"probe":
            refuse(errno.EBADMSG)

    return exchange


def far_urgent(echo, urgent):
    """With servers that send urgent bytes back as such, and those of far_exchange(): each two addresses and a port."""

    def exchange(sock, kind):
        if kind[1] == socket.SOCK_STREAM:
            sock.connect(place(kind, *urgent))
            send_urgent(sock)
            hear_urgent(sock)
            return None
        sock.connect(place(kind, *echo))
        send_urgent(sock)
        if sock.recv(10) != b"ab!":
            refuse(errno.EBADMSG)
        return "ignored"

    return exchange


def near_urgent(make, kind):
    """Between two unix sockets of the guest's own kernel."""
    try:
        with make(*kind) as server, make(*kind) as client:
            server.bind("")
            if kind[1] != socket.SOCK_DGRAM:
                server.listen()
            client.connect(server.getsockname())
            send_urgent(client)
            with server.accept()[0] as accepted:
                hear_urgent(accepted)
    except OSError as error:
        return word(error)
    return "local"


def main():
    echo, back = ((*each[:2], int(each[2])) for each in (sys.argv[1:4], sys.argv[4:]))
    exchange, urgent = far_exchange(*echo), far_urgent(echo, back)
    asked = json.load(sys.stdin)
    found = {
        "kinds": [outcome(kernel, kind, exchange) for kind in asked["kinds"]],
        "urgent": [
            outcome(kernel, kind, urgent) if kind[0] in INTERNET else near_urgent(kernel, kind)
            for kind in asked["urgent"]
        ],
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
