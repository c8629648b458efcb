"""Options that go along from a guest's socket to the far side's."""

from __future__ import annotations

import socket

import pytest

from xensock.supervisor.carried import Carrier, asked_of

CHOSEN = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 77),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000),
    (socket.IPPROTO_IP, socket.IP_TTL, 33),
)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_what_was_chosen_goes_along_and_nothing_else(family: int) -> None:
    carrier = Carrier()
    with socket.socket(family) as guest, socket.socket() as far, socket.socket() as plain:
        for level, name, value in CHOSEN:
            guest.setsockopt(level, name, value)
        asked = asked_of(guest)
        guest.close()  # it is not needed any more
        carrier.carry(asked, far)
        for level, name, value in CHOSEN:
            assert far.getsockopt(level, name) == value
        others = asked.keys() - {(level, name) for level, name, _ in CHOSEN}
        assert len(others) > 5
        for level, name in others:
            if level != socket.IPPROTO_IPV6:
                assert far.getsockopt(level, name) == plain.getsockopt(level, name)


def test_sizes_of_buffers_are_the_programs_or_the_networks() -> None:
    with socket.socket() as guest, socket.socket() as far, socket.socket() as plain:
        Carrier().carry(asked_of(guest), far)
        send, receive = (socket.SOL_SOCKET, socket.SO_SNDBUF), (socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert far.getsockopt(*send) == plain.getsockopt(*send)
        guest.setsockopt(*receive, 30_000)
        Carrier().carry(asked_of(guest), far)
        assert far.getsockopt(*receive) == guest.getsockopt(*receive)
        assert far.getsockopt(*send) == plain.getsockopt(*send)


def test_families_have_options_of_their_own() -> None:
    carrier = Carrier()
    hops = socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS
    with socket.socket(socket.AF_INET6) as guest, socket.socket(socket.AF_INET6) as far:
        guest.setsockopt(*hops, 9)
        carrier.carry(asked_of(guest), far)
        assert far.getsockopt(*hops) == 9
    with socket.socket() as guest, socket.socket(socket.AF_INET6) as far:
        guest.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 9)
        carrier.carry(asked_of(guest), far)  # sent elsewhere by a rule, over the other family
        assert far.getsockopt(*hops) != 9
