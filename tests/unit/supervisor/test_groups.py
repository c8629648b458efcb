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

INODE = 77
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
    host.groups.join(1, ONE, INODE)
    host.groups.join(2, ONE, INODE)
    assert host.heard() == [(ONE, True)]
    host.groups.leave(1, ONE)
    assert host.heard() == []
    host.groups.gone(2)
    assert host.heard() == [(ONE, False)]


def test_who_joins_before_it_is_bound_hears_what_the_host_says(
    host: Host, outer: socket.socket
) -> None:
    host.groups.join(1, ONE, INODE)
    host.groups.join(1, SIX, INODE)
    # By sockets of the moment.
    assert host.heard() == [(ONE, True), (ONE, False), (SIX, True), (SIX, False)]
    assert host.groups.waiting(1) == {ONE, SIX}
    host.groups.bound(1, outer)
    assert set(host.heard()) == {(ONE, True), (SIX, True)}
    host.error = errno.ENODEV
    with pytest.raises(OSError, match=str(errno.ENODEV)):
        host.groups.join(3, TWO, INODE)
    assert host.groups.waiting(3) == set()


def test_other_rules_end_what_they_do_not_allow(host: Host, outer: socket.socket) -> None:
    host.outers[1] = outer
    outer.bind(("127.0.0.1", 0))
    port = outer.getsockname()[1]
    host.groups.join(1, ONE, INODE)
    host.groups.join(1, TWO, INODE)
    host.heard()
    host.groups.judge(lambda group, number: group == ONE and number == port)
    assert host.heard() == [(TWO, False)]
    assert host.groups.waiting(1) == {ONE}


def test_a_descriptor_used_again_is_in_no_group(host: Host, outer: socket.socket) -> None:
    host.outers[1] = outer
    host.groups.join(1, ONE, INODE)
    host.groups.closing(outer)
    host.groups.bound(1, outer)
    assert host.heard() == [(ONE, True), (ONE, True)]


def test_a_successor_goes_on_where_its_predecessor_was(host: Host, outer: socket.socket) -> None:
    kept: dict[str, int] = {}
    first = Groups(
        host.outers.get, lambda family: socket.socket(family, 2), kept.__setitem__, kept.pop
    )
    first.join(1, ONE, INODE)  # it is bound to nothing yet
    assert list(kept) == [kept_as(1, ONE, INODE)]
    host.heard()
    host.outers[1] = outer
    first.bound(1, outer)
    first.join(1, SIX, INODE)
    assert set(kept) == {kept_as(1, ONE, INODE), kept_as(1, SIX, INODE)}
    host.heard()
    host.error = errno.EADDRINUSE  # by the predecessor
    host.groups.resume(1, ONE, INODE, outer)
    host.groups.resume(1, SIX, INODE, outer)
    host.error = 0
    assert host.groups.waiting(1) == {ONE, SIX}
    host.groups.judge(lambda group, number: group == SIX)
    host.groups.gone(1)
    assert host.heard() == [(ONE, False), (SIX, False)]
    first.gone(1)
    assert kept == {}


def test_who_is_not_bound_yet_waits_at_a_successor_too(host: Host, outer: socket.socket) -> None:
    host.groups.resume(1, ONE, INODE)
    assert host.heard() == []
    assert host.groups.waiting(1) == {ONE}
    host.groups.bound(1, outer)
    assert host.heard() == [(ONE, True)]


def test_a_successor_ends_what_was_begun(host: Host, outer: socket.socket) -> None:
    """The predecessor was killed after it had a port for the socket, and before that joined."""
    host.outers[1] = outer
    host.groups.resume(1, ONE, INODE, outer)
    assert host.heard() == [(ONE, True)]
    host.error = errno.ENODEV
    with pytest.raises(OSError, match=str(errno.ENODEV)):
        host.groups.resume(1, TWO, INODE, outer)


def test_what_a_successor_was_left_is_kept_until_it_ends(host: Host) -> None:
    kept = {kept_as(1, ONE, INODE): 0}
    second = Groups(
        host.outers.get, lambda family: socket.socket(family, 2), kept.__setitem__, kept.pop
    )
    second.resume(1, ONE, INODE)
    second.leave(1, ONE)
    assert kept == {}
