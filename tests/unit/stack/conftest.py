"""Fixtures of the tests of the host's resolver."""

from __future__ import annotations

import pytest

from dnskit import WEB, DnsPeer, Host


@pytest.fixture
def peer():
    """The host's name server."""
    with DnsPeer(WEB) as peer:
        yield peer


@pytest.fixture
def host(tmp_path, peer) -> Host:
    """A host that asks `peer`, and nobody else."""
    return Host(tmp_path, peer.port).servers("127.0.0.1")
