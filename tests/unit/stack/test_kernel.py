"""The stack that is this host's kernel."""

from __future__ import annotations

import errno
import socket

from xensock.calls.address import Endpoint
from xensock.calls.call import Protocol
from xensock.stack.kernel import Kernel


def test_a_connection_between_two_of_its_sockets() -> None:
    kernel = Kernel()
    with kernel.create_server("127.0.0.1", 0, socket.AF_INET, False) as listener:
        listener.settimeout(5)
        with kernel.make(socket.AF_INET, socket.SOCK_STREAM, 0) as client:
            client.connect(listener.getsockname())
            accepted, address = listener.accept()
            with accepted:
                assert address == client.getsockname()
                client.sendall(b"x")
                assert accepted.recv(2) == b"x"


def test_one_listener_for_both_families() -> None:
    with Kernel().create_server("::", 0, socket.AF_INET6, True) as listener:
        assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 0


def test_a_look_asks_the_routes() -> None:
    kernel = Kernel()
    found = kernel.look(Protocol.UDP, Endpoint.from_python(("127.0.0.1", 9)))
    assert (found.error, found.decision) == (0, None)
    assert str(found.own and found.own.host) == "127.0.0.1"
    everybody = Endpoint.from_python(("127.255.255.255", 9))
    assert kernel.look(Protocol.UDP, everybody).error == errno.EACCES
    assert kernel.look(Protocol.UDP, everybody, True).error == 0
