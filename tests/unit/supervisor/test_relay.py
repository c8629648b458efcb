"""The relay as a whole: what it counts, and what it leaves behind."""

from __future__ import annotations

import errno
import os
import threading

import pytest
from relaykit import Ground, error_of, events, read, until

import nskit
from xensock.calls.address import Endpoint

pytestmark = pytest.mark.skipif(bool(nskit.missing()), reason=nskit.missing())


def test_close_leaves_nothing():
    before = set(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    ground = Ground()
    held = ground.client(blocking=False)
    assert ground.connect_to(held, Endpoint.from_python(("192.0.2.77", 80))) == errno.EINPROGRESS
    with ground.pair() as (guest, far):
        until(lambda: ground.relay.connections() == 1)
        ground.relay.close()
        ground.relay.close()
        for sock in (guest, far):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    assert ground.relay.connections() == 0
    with ground.client() as late, ground.server() as server:
        assert ground.connect(late, server) == errno.ENETDOWN
    held.close()
    ground.close()
    assert threading.active_count() == threads
    assert set(os.listdir("/proc/self/fd")) == before


def test_close_lets_what_was_sent_arrive():
    ground = Ground()
    try:
        with ground.pair() as (guest, far):
            guest.sendall(bytes(1 << 20))
            guest.close()
            ground.relay.close(linger=5)
            assert len(read(far, 2 << 20)) == 1 << 20
    finally:
        ground.close()


def test_a_held_guest_is_refused_when_the_relay_closes():
    """Nobody answers it any more: its kernel's next SYN meets no listener."""
    ground = Ground()
    try:
        with ground.client(blocking=False) as guest:
            unanswered = Endpoint.from_python(("192.0.2.77", 80))
            ground.host.ip("neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev h0 nud permanent\n")
            assert ground.connect_to(guest, unanswered) == errno.EINPROGRESS
            assert events(guest, 50) == 0
            ground.relay.close()
            assert events(guest, 5000)
            assert error_of(guest) == errno.ECONNREFUSED
    finally:
        ground.close()
