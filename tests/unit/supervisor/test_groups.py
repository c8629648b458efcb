"""Which groups the host's sockets are in: as long as any of the guest's sockets of their port is."""

from __future__ import annotations

import errno
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import pytest

from xensock.supervisor import groups
from xensock.supervisor.groups import Groups, kept_as

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.calls.address import IPAddress

ONE, TWO, SIX = IPv4Address("239.1.1.1"), IPv4Address("239.1.1.2"), IPv6Address("ff05::1")


class Host:
    """Ports by the cookies of the guest's sockets, and what the host's sockets were told."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.outers: dict[int, socket.socket] = {}
        self.told: list[tuple[IPAddress, bool]] = []
        self.error = 0
        self.groups = Groups(self.outers.get, lambda family: socket.socket(family, 2))
        patch.setattr(groups, "_member", self._member)

    def _member(self, sock: socket.socket, group: IPAddress, enter: bool) -> None:
        if self.error:
            raise OSError(self.error, "")
        self.told.append((group, enter))

    def heard(self) -> list[tuple[IPAddress, bool]]:
        told, self.told = self.told, []
        return told


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


@pytest.fixture
def outer() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        yield sock


def test_a_port_is_in_a_group_as_long_as_any_of_its_sockets(
    host: Host, outer: socket.socket
) -> None:
    host.outers.update({1: outer, 2: outer})
    host.groups.join(1, ONE)
    host.groups.join(2, ONE)
    assert host.heard() == [(ONE, True)]
    host.groups.leave(1, ONE)
    assert host.heard() == []
    host.groups.gone(2)
    assert host.heard() == [(ONE, False)]


def test_who_joins_before_it_is_bound_hears_what_the_host_says(
    host: Host, outer: socket.socket
) -> None:
    host.groups.join(1, ONE)
    host.groups.join(1, SIX)
    assert host.heard() == [(ONE, True), (SIX, True)]  # sockets of the moment
    assert host.groups.waiting(1) == {ONE, SIX}
    host.groups.bound(1, outer)
    assert set(host.heard()) == {(ONE, True), (SIX, True)}
    host.error = errno.ENODEV
    with pytest.raises(OSError, match=str(errno.ENODEV)):
        host.groups.join(3, TWO)
    assert host.groups.waiting(3) == set()


def test_other_rules_end_what_they_do_not_allow(host: Host, outer: socket.socket) -> None:
    host.outers[1] = outer
    outer.bind(("127.0.0.1", 0))
    port = outer.getsockname()[1]
    host.groups.join(1, ONE)
    host.groups.join(1, TWO)
    host.heard()
    host.groups.judge(lambda group, number: group == ONE and number == port)
    assert host.heard() == [(TWO, False)]
    assert host.groups.waiting(1) == {ONE}


def test_a_descriptor_used_again_is_in_no_group(host: Host, outer: socket.socket) -> None:
    host.outers[1] = outer
    host.groups.join(1, ONE)
    host.groups.closing(outer)
    host.groups.bound(1, outer)
    assert host.heard() == [(ONE, True), (ONE, True)]


def test_a_successor_goes_on_where_its_predecessor_was(host: Host, outer: socket.socket) -> None:
    kept: dict[str, int] = {}
    first = Groups(
        host.outers.get, lambda family: socket.socket(family, 2), kept.__setitem__, kept.pop
    )
    first.join(1, ONE)  # it is bound to nothing yet
    assert kept == {}
    host.heard()
    host.outers[1] = outer
    first.bound(1, outer)
    first.join(1, SIX)
    assert kept == dict.fromkeys([kept_as(1, ONE), kept_as(1, SIX)], outer.fileno())
    host.heard()
    host.groups.resume(1, outer, ONE)
    host.groups.resume(1, outer, SIX)
    assert host.groups.waiting(1) == {ONE, SIX}
    host.groups.judge(lambda group, number: group == SIX)
    host.groups.gone(1)
    assert host.heard() == [(ONE, False), (SIX, False)]
    first.gone(1)
    assert kept == {}
