"""connect(2) within the guest's network on a socket that several processes hold.

Theory of operation: another socket cannot take the place of this one everywhere (swap.py), so it stays what it is, a
socket of the host's network. It connects over the host's loopback to a listener of ours that stands there for a moment
and takes this one connection; behind that a socket of the guest's network has connected to the guest's listener, and
the relay moves the bytes. The stand-in has the address and port that the guest asked for, and the port of the client
is the same on both sides, where the host has them free.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from xensock import _core
from xensock.supervisor.options import bind_anywhere

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.calls.address import Endpoint
    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor

IP_LOCAL_PORT_RANGE = 51  # Linux 6.3
BEGIN_WAIT_US = 100
ANSWERS_MS = 20  # a listener on loopback answers within the call, unless its queue is full
ARRIVES_S = 0.3
ATTEMPTS = 16  # of finding a port that is free in both networks


def refused(q: Question, at: Endpoint) -> int:
    """connect(2) of a socket of the host's network to a place on the guest's loopback where nobody listens.

    The host's kernel refuses as the guest's would, at a port that is nobody else's meanwhile. Raises OSError.
    """
    with socket.socket(_family(at), socket.SOCK_STREAM) as silent:
        silent.bind((str(at.host), 0))
        return _begin(q, silent, 0)


def connect(sup: Supervisor, q: Question, at: Endpoint) -> int | None:
    """Connect and return the errno of connect(2), EINPROGRESS for one that is being answered; None where this way
    cannot serve: the guest's listener does not answer. `at`: where to, on loopback. Raises OSError."""
    inner = _inner(sup, q, at)
    if inner is None:
        return None
    if inner.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        inner.close()
        return refused(q, at)
    try:
        with _stand_in(at) as stand_in:
            error = _begin(q, stand_in, inner.getsockname()[1])
            if error in (0, errno.EINPROGRESS):
                sup.parts.relay.join(inner, _arrived(q, stand_in))
    except BaseException:
        inner.close()
        raise
    if error not in (0, errno.EINPROGRESS):
        inner.close()
    return error


def _family(at: Endpoint) -> socket.AddressFamily:
    return socket.AF_INET if at.host.version == 4 else socket.AF_INET6


def _stand_in(at: Endpoint) -> socket.socket:
    """A listener on the host's loopback, at the guest's destination where that is free."""
    sock = socket.socket(_family(at), socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(at.as_python())
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            sock.bind((str(at.host), 0))
        sock.listen(8)
    except BaseException:
        sock.close()
        raise
    return sock


def _inner(sup: Supervisor, q: Question, at: Endpoint) -> socket.socket | None:
    """A socket of the guest's network that has connected, or was refused; None if there is no answer."""
    sock = _bound(sup, q, at)
    try:
        sock.connect_ex(at.as_python())
        poll = select.poll()
        poll.register(sock, select.POLLOUT)
        if poll.poll(ANSWERS_MS):
            return sock
    except BaseException:
        sock.close()
        raise
    sock.close()
    return None


def _bound(sup: Supervisor, q: Question, at: Endpoint, attempts: int = ATTEMPTS) -> socket.socket:
    """A socket of the guest's network with the client's port, or with one that the host has free as well.

    Where that cannot be had, after so many attempts, with any port. Raises OSError.
    """
    loopback = "127.0.0.1" if at.host.version == 4 else "::1"
    port = q.sock.getsockname()[1]
    sock = sup.parts.guest.socket(_family(at), socket.SOCK_STREAM, 0)
    try:
        sock.setblocking(False)
        if port:
            with suppress(OSError):  # the port is another's there
                bind_anywhere(sock, (loopback, port))
            return sock
        bind_anywhere(sock, (loopback, 0))
        if not attempts or _free(sock.getsockname()[1]):
            return sock
    except BaseException:
        sock.close()
        raise
    sock.close()
    return _bound(sup, q, at, attempts - 1)


def _free(port: int) -> bool:
    """Whether no socket of the host is bound to it at any address: connect(2) takes no such port by itself."""
    try:
        both = socket.has_dualstack_ipv6()
        family, anywhere = (socket.AF_INET6, "::") if both else (socket.AF_INET, "0.0.0.0")
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if both:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((anywhere, port))
    except OSError:
        return False
    return True


def _begin(q: Question, stand_in: socket.socket, port: int) -> int:
    """connect(2) of the guest's own file to the stand-in, from this port if it can be."""
    addr = q.addr[:2] + struct.pack("!H", stand_in.getsockname()[1]) + q.addr[4:]
    if port and not q.sock.getsockname()[1]:
        # Not by binding it: a socket is to be bound afterwards if its program did that.
        with suppress(OSError), _only_from(q.sock, port):
            error = _core.connect_start(q.sock.fileno(), addr, BEGIN_WAIT_US)
            if error != errno.EADDRNOTAVAIL:
                return error
    return _core.connect_start(q.sock.fileno(), addr, BEGIN_WAIT_US)


@contextmanager
def _only_from(sock: socket.socket, port: int) -> Iterator[None]:
    """Let the kernel choose this port only. Raises OSError where it has no such option."""
    before = sock.getsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, 4)
    both = struct.pack("=I", port << 16 | port)
    sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, both)
    try:
        yield
    finally:
        sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, before)


def _arrived(q: Question, stand_in: socket.socket) -> socket.socket:
    """Our end of the guest's connection; whoever else finds the stand-in is turned away."""
    stand_in.settimeout(ARRIVES_S)
    name = q.sock.getsockname()[1]
    while True:
        try:
            outer, peer = stand_in.accept()
        except TimeoutError:
            # Taken apart by another holder meanwhile; it must not stay connected to nobody.
            _core.connect_start(q.sock.fileno(), bytes(16), BEGIN_WAIT_US)
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
        if peer[1] == name:
            return outer
        outer.close()
