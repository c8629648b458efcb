"""Fixtures of the tests of the guest's DNS server."""

from __future__ import annotations

import pytest

from dnsguest import WEB, Guest
from dnskit import DnsPeer


@pytest.fixture
def peer():
    """The host's name server."""
    with DnsPeer(WEB) as peer:
        yield peer


@pytest.fixture
def make(tmp_path, peer):
    """Makes guests that ask by way of `peer`; `options` as for dnsguest.Guest."""
    guests = []

    def make(**options) -> Guest:
        guests.append(Guest(tmp_path, peer, **options))
        return guests[-1]

    yield make
    for guest in guests:
        guest.server.close()


@pytest.fixture
def guest(make) -> Guest:
    """A guest without rules."""
    return make()
