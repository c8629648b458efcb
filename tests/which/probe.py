"""Tries kinds of sockets for real: `probe.py ADDRESS4 ADDRESS6 PORT` reads [family, type, protocol] triples as JSON
from standard input, and prints what became of each. It has nothing of XenSock, as it runs in guests."""

from __future__ import annotations

import errno
import json
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
    return errno.errorcode.get(error.errno, str(error))


def outcome(make, kind, exchange):
    """ "carried", "local" or an errno's name. `exchange(socket, …)` sends there and back to a far end, or raises."""
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
            exchange(sock, kind)
        except OSError as error:
            return "not carried: " + word(error)
    return "carried"


def ping(sock, protocol, where):
    """An echo request and its answer."""
    sock.sendto(bytes([ECHO_REQUEST[protocol], 0, 0, 0, 0, 0, 0, 1]) + b"probe", where)
    if not sock.recv(100).endswith(b"probe"):
        raise OSError(errno.EBADMSG, "another answer")


def far_exchange(address4, address6, port):
    """With echo servers at these addresses."""

    def exchange(sock, kind):
        family, _, protocol = kind
        host = {socket.AF_INET: address4, socket.AF_INET6: address6}.get(family)
        where = (host or "::ffff:" + address4, 0 if protocol in ECHO_REQUEST else port)
        if protocol in ECHO_REQUEST:
            ping(sock, protocol, where)
            return
        sock.connect(where)
        sock.send(b"probe")
        if sock.recv(100) != b"probe":
            raise OSError(errno.EBADMSG, "another answer")

    return exchange


def main():
    address4, address6, port = sys.argv[1:]
    exchange = far_exchange(address4, address6, int(port))
    json.dump([outcome(kernel, kind, exchange) for kind in json.load(sys.stdin)], sys.stdout)


if __name__ == "__main__":
    main()
