"""Groups of containers: who knows whom, and what a connect to a member's address leads to."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from xensock.backend.groups import Groups, Member
from xensock.calls.address import Endpoint
from xensock.calls.call import Protocol
from xensock.supervisor.diag import cookie
from xensock.supervisor.publication import Publication, Publications

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def groups() -> Iterator[Groups]:
    made = Groups()
    yield made
    made.close()


def named(groups: Groups, group: str, *names: str) -> Member:
    return groups.join(group, frozenset(names))


def test_names_within_a_group(groups: Groups) -> None:
    app, other = named(groups, "shop", "app", "service"), named(groups, "shop", "service")
    stranger, alone = named(groups, "else", "app"), named(groups, "", "app")
    assert app.find("app") == [app.address]
    assert other.find("service") == [app.address, other.address]
    assert stranger.find("app") == [stranger.address]
    assert (alone.find("app"), stranger.find("service")) == ([], [])
    app.leave()
    assert other.find("app") == []
    assert named(groups, "shop", "new").address == app.address


def test_connects_end_at_a_members_own_listeners(groups: Groups) -> None:
    app, caller, stranger = (named(groups, g, "x") for g in ("shop", "shop", "else"))
    with socket.socket() as listener:
        listener.bind((str(app.inner), 0))
        listener.listen()
        port = listener.getsockname()[1]
        end = Endpoint(app.address, port)

        def error(who: Member, where: Endpoint = end, protocol: Protocol = Protocol.TCP) -> int:
            found = who.connect(protocol, where)
            assert found is not None
            return found.error

        assert error(caller) == errno.ECONNREFUSED  # it does not run yet
        app.listens = lambda key: False
        assert error(caller) == errno.ECONNREFUSED  # somebody else's
        app.listens = lambda key: key == cookie(listener)
        found = caller.connect(Protocol.TCP, end)
        assert found is not None
        assert (found.allowed, found.redirect) == (True, Endpoint(app.inner, port))
        assert not found.cacheable
        assert error(caller, protocol=Protocol.UDP) == errno.ECONNREFUSED
        assert error(caller, Endpoint(ip_address("240.88.99.99"), port)) == errno.EHOSTUNREACH
        assert error(stranger) == errno.EHOSTUNREACH
        app.leave()
        assert error(caller) == errno.EHOSTUNREACH
    for elsewhere in ("240.89.0.1", "198.51.100.10", "::", "127.0.0.1"):
        assert caller.connect(Protocol.TCP, Endpoint(ip_address(elsewhere), 80)) is None


def test_ports_that_are_kept_from_the_world() -> None:
    named, inner = Publication.parse("8080:80"), ip_address("127.64.0.1")
    assert Publications((named,)).of(80) == (named,)
    assert Publications((named,)).of(81) == ()
    kept = Publications((named,), inner)
    assert kept.of(80) == (named,)
    assert kept.of(81) == (Publication(inner, 81, 81),)
