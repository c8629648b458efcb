"""Catching SYNs and asking for sockets' states in a guest's namespace."""

from __future__ import annotations

import socket

import pytest

import nskit
from xensock.calls.address import Endpoint
from xensock.supervisor.relay_wire import SO_MARK, TCP_SYN_SENT, Wire, attach_filter, cookie_of
from xensock.supervisor.synreplay import listener_filter

pytestmark = pytest.mark.skipif(bool(nskit.missing()), reason=nskit.missing())

MARK = 0x1234567


@pytest.fixture
def guest():
    made = nskit.Namespace(nskit.GUEST)
    yield made
    made.close()


@pytest.fixture
def wire(guest):
    made = Wire(guest.socket, MARK)
    yield made
    made.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_a_caught_syn_sent_again(guest, wire, host):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    version = 6 if ":" in host else 4
    with (
        guest.socket(family, socket.SOCK_STREAM) as listener,
        guest.socket(family, socket.SOCK_STREAM) as sock,
    ):
        attach_filter(listener, listener_filter(MARK))
        level, freebind = (socket.IPPROTO_IPV6, 78) if version == 6 else (socket.IPPROTO_IP, 15)
        listener.setsockopt(level, freebind, 1)
        listener.bind((host, 80))
        listener.listen()
        listener.settimeout(5)
        assert list(wire.captured(version)) == []
        sock.setblocking(False)
        sock.connect_ex((host, 80))
        (syn,) = wire.captured(version)
        own, peer = (
            Endpoint.from_python(sock.getsockname()),
            Endpoint.from_python(listener.getsockname()),
        )
        assert (syn.source, syn.target) == (own, peer)
        assert wire.state(own, peer, cookie_of(sock)) == 2
        assert wire.state(own, peer, cookie_of(listener)) is None
        wire.send(syn.again(), peer)
        listener.accept()[0].close()
        assert wire.state(own, peer, cookie_of(sock)) in (1, 8)
        assert list(wire.captured(version)) == []  # what carries the mark is not caught


def test_a_marked_connect_is_not_caught_and_passes(guest, wire):
    with guest.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        attach_filter(listener, listener_filter(MARK))
        listener.bind(("192.0.2.1", 80))
        listener.listen()
        listener.settimeout(5)
        assert list(wire.captured(4)) == []
        with guest.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK)
            sock.settimeout(5)
            sock.connect(("192.0.2.1", 80))
            listener.accept()[0].close()
        assert list(wire.captured(4)) == []


def test_a_socket_that_is_gone(guest, wire):
    nowhere = Endpoint.from_python(("10.0.2.100", 5))
    assert wire.state(nowhere, Endpoint.from_python(("192.0.2.1", 80)), 1) is None


def test_a_kernel_that_looks_nothing_up(guest, wire, monkeypatch):
    """It says of sockets that are there what it says of others."""
    monkeypatch.setattr(Wire, "_look", staticmethod(lambda *_: None))
    nowhere = Endpoint.from_python(("10.0.2.100", 5))
    assert wire.state(nowhere, Endpoint.from_python(("192.0.2.1", 80)), 1) == TCP_SYN_SENT
    assert wire.blind


def test_one_that_does(guest, wire):
    nowhere = Endpoint.from_python(("10.0.2.100", 5))
    wire.state(nowhere, Endpoint.from_python(("192.0.2.1", 80)), 1)
    assert not wire.blind
