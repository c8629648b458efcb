"""A guest's socket on the port of a destination that is being called, in namespaces of their own."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from relaykit import FAR4, FAR6, OUT, Ground, events

import nskit
from xensock.calls.address import Endpoint
from xensock.supervisor import options, reusing
from xensock.supervisor.relay_wire import SO_DETACH_FILTER, attach_filter

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(bool(nskit.missing()), reason=nskit.missing())

DROP_ALL = struct.pack("=HBBI", 6, 0, 0, 0)


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with closing(Ground()) as made:
        yield made


@pytest.mark.parametrize("host", [FAR4, FAR6])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("twin", [False, True])
def test_bind_and_listen_beside_a_call_that_waits(
    ground: Ground, host: str, early: bool, twin: bool
) -> None:
    """Bound before the call or after it. The call goes where it went, nothing of this is left on the socket, and who
    listens there of the guest's own is in the way as ever."""
    with (
        ground.server(host) as server,
        ground.client(server.family, blocking=False) as guest,
        ground.client(socket.AF_INET6) as own,
        ground.client(socket.AF_INET6) as rival,
    ):
        attach_filter(server, DROP_ALL)
        port = server.getsockname()[1]
        wildcard = Endpoint.from_python(("::", port))
        if early:
            reusing.bind(ground.relay, own, wildcard, twin=twin)
        assert ground.connect(guest, server) == errno.EINPROGRESS
        if not early:
            reusing.bind(ground.relay, own, wildcard, twin=twin)
        with pytest.raises(OSError, match="in use"):
            own.listen()
        with pytest.raises(OSError, match="in use"):
            reusing.bind(ground.relay, rival, wildcard, twin=twin)
        for each in (own, rival):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reusing.bind(ground.relay, rival, wildcard, twin=twin)
        reusing.listen(ground.relay, own, 5, twin=twin)
        for name, value in ((options.SO_BINDTOIFINDEX, 0), (socket.SO_REUSEADDR, 1)):
            assert own.getsockopt(socket.SOL_SOCKET, name) == value
        with pytest.raises(OSError, match="in use"):
            reusing.listen(ground.relay, rival, 5, twin=twin)

        server.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
        with server.accept()[0] as far:
            assert events(guest, 10_000) == OUT
            far.sendall(b"from there")
            guest.setblocking(True)
            assert guest.recv(99) == b"from there"
        own.settimeout(10)
        with ground.client(socket.AF_INET6) as neighbour:
            neighbour.connect(("::1", port))
            with own.accept()[0] as found:
                assert found.getpeername() == neighbour.getsockname()
