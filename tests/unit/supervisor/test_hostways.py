"""The way out as this host has it."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address

import pytest

from xensock.supervisor.hostways import way
from xensock.supervisor.rtnetlink import LARGEST


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_way_out_is_one_that_a_card_can_have(family: int) -> None:
    other = IPv4Address("192.0.2.1")
    found = way(family, other)
    assert found.family == family
    assert (576 if family == socket.AF_INET else 1280) <= found.mtu <= LARGEST
    assert found.source is None or not found.source.is_loopback
