"""The backend's side between Xen domains: what a domain may have of it, and what it writes."""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING

import pytest
from xenkit import Xen

from xensock.transport import budget, xen_back
from xensock.transport.base import GrantError, Limits
from xensock.transport.budget import Budget

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.transport.xen_back import XenBackSession, XenListener


@pytest.fixture
def xen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Xen]:
    made = Xen(monkeypatch)
    yield made
    made.ports.end()


@pytest.fixture
def listener(xen: Xen) -> Iterator[XenListener]:
    made = xen_back.listen(Limits(pages=16, ports=4))
    yield made
    made.close()


def begin(listener: XenListener) -> XenBackSession:
    session = listener.accept()
    assert session is not None
    return session


def granted(xen: Xen, count: int) -> list[int]:
    refs = [0] * count
    xen.grants.xengntshr_share_pages(1, 0, count, refs, 1)
    return refs


def test_devices_of_several_domains(xen: Xen, listener: XenListener) -> None:
    assert listener.accept() is None
    for domain in (3, 5):
        xen.device(domain)
    sessions = [begin(listener), begin(listener)]
    assert listener.accept() is None
    assert sorted((each.guest, each.domain) for each in sessions) == [("guest3", 3), ("guest5", 5)]
    for each in sessions:
        each.close()
        assert xen.store.nodes[f"/local/domain/0/backend/pvcalls/{each.domain}/0/state"] == "6"


def test_grants_are_mapped_in_the_order_they_are_named(xen: Xen, listener: XenListener) -> None:
    xen.device(3)
    session = begin(listener)
    first, second = granted(xen, 2)
    session.map([first])[:5] = b"first"
    both = session.map([second, first])
    assert bytes(both[4096:4101]) == b"first"
    session.close()
    both[:6] = b"second"  # a view outlives the session
    assert xen.grants.mapped == 2
    del both
    assert xen.grants.mapped == 0


def test_grants_and_ports_that_the_domain_has_not(xen: Xen, listener: XenListener) -> None:
    xen.device(3)
    session = begin(listener)
    for what in (lambda: session.map([1, 2]), lambda: session.bind(77)):
        with pytest.raises(GrantError) as caught:
            what()
        assert caught.value.errno == errno.EINVAL
    # What was refused took nothing of what the domain may have.
    view = session.map(granted(xen, 16))
    for _ in range(4):
        session.bind(xen.ports.unbound(0).port)
    session.close()
    del view


def test_pages_are_bounded_for_a_domain_with_all_its_devices(
    xen: Xen, listener: XenListener
) -> None:
    xen.device(3, 0)
    xen.device(3, 1)
    xen.device(5)
    one, two, other = (begin(listener) for _ in range(3))
    if one.domain == 5:
        one, other = other, one
    elif two.domain == 5:
        two, other = other, two
    refs = granted(xen, 16)
    held = one.map(refs[:10])
    with pytest.raises(GrantError) as caught:
        two.map(refs[:7])
    assert caught.value.errno == errno.ENOMEM
    rest = two.map(refs[:6])
    neighbour = other.map(refs)
    # A session's end frees nothing that is mapped still: the next one of the domain has as much less.
    one.close()
    xen.store.set("/local/domain/3/device/pvcalls/0/state", "1")
    again = begin(listener)
    with pytest.raises(GrantError):
        again.map(refs[:1])
    del held
    assert len(again.map(refs[:10])) == 10 * 4096
    for each in (two, other, again):
        each.close()
    del rest, neighbour


def test_event_channels_are_bounded_for_a_domain_with_all_its_devices(
    xen: Xen, listener: XenListener
) -> None:
    xen.device(3, 0)
    xen.device(3, 1)
    one, two = begin(listener), begin(listener)
    events = [each.bind(xen.ports.unbound(0).port) for each in (one, two, one, two)]
    with pytest.raises(GrantError) as caught:
        two.bind(xen.ports.unbound(0).port)
    assert caught.value.errno == errno.ENFILE
    events[0].close()
    events[0].close()
    two.bind(xen.ports.unbound(0).port).close()
    for event in events:
        event.close()
    one.close()
    two.close()


def test_event_channels_leave_descriptors_to_other_domains(
    xen: Xen, listener: XenListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "DESCRIPTORS", Budget(lambda: 16))
    xen.device(3, 0)
    xen.device(3, 1)
    xen.device(4)
    one, two, other = (begin(listener) for _ in range(3))
    events = [each.bind(xen.ports.unbound(0).port) for each in (one, two)]
    with pytest.raises(GrantError, match="descriptors") as caught:
        one.bind(xen.ports.unbound(0).port)
    assert caught.value.errno == errno.ENFILE
    with pytest.raises(GrantError, match="no such port"):
        other.bind(99999)
    events.append(other.bind(xen.ports.unbound(0).port))
    for event in events:
        event.close()
    assert budget.DESCRIPTORS.used == 0
    for each in (one, two, other):
        each.close()


def test_rules_know_a_domain_by_what_its_toolstack_says(xen: Xen, listener: XenListener) -> None:
    front, _ = xen.device(3)
    xen.device(4)
    xen.store.set("/local/domain/3/vm", "/vm/6d1f2f1e-27a4-4f8b-9c8e-2b1f0d8c3a55")
    xen.store.set(f"{front}/name", "trusted")
    one, other = begin(listener), begin(listener)
    assert one.labels == {
        "xen.name": "guest3",
        "xen.uuid": "6d1f2f1e-27a4-4f8b-9c8e-2b1f0d8c3a55",
    }
    assert other.labels == {"xen.name": "guest4"}
    for each in (one, other):
        each.close()


def test_what_a_frontend_writes_is_bounded(xen: Xen, listener: XenListener) -> None:
    front, _ = xen.device(3)
    session = begin(listener)
    for number in range(1000):
        xen.store.set(f"{front}/z{number}", "x")
    xen.store.set(f"{front}/port", "1\n2")
    xen.store.set(f"{front}/ring-ref", "\N{SNOWMAN}")
    xen.store.set(f"{front}/{'n' * 300}", "1")
    assert session.receive()
    assert len(session.nodes) <= xen_back.MOST_NODES
    assert session.nodes["state"] == "1"
    assert not {"port", "ring-ref", "n" * 300} & session.nodes.keys()
    session.close()


def test_a_storm_of_changes_costs_a_look_for_many(xen: Xen, listener: XenListener) -> None:
    front, _ = xen.device(3)
    session = begin(listener)
    while select.select([session], [], [], 0)[0]:
        assert session.receive()
    before = xen.store.reads
    for number in range(10 * xen_back.TURN):
        xen.store.set(f"{front}/state", str(number % 2 + 1))
    turns = 0
    while select.select([session], [], [], 0)[0]:
        assert session.receive()
        turns += 1
    assert turns <= 11
    assert xen.store.reads - before <= turns * len(session.nodes)
    session.close()


def test_who_was_expelled_begins_when_it_says_so(xen: Xen, listener: XenListener) -> None:
    front, back = xen.device(3)
    begin(listener).close()
    for state in ("3", "4", "5"):
        xen.store.set(f"{front}/state", state)
        assert listener.accept() is None
    assert xen.store.nodes[f"{back}/state"] == "6"
    xen.store.set(f"{front}/state", "1")
    begin(listener).close()


def test_who_has_begun_before_the_backend_did(xen: Xen, listener: XenListener) -> None:
    front, back = xen.device(3)
    xen.store.set(f"{back}/state", "2")
    xen.store.set(f"{front}/state", "3")
    begin(listener).close()


def test_a_domain_that_is_gone(xen: Xen, listener: XenListener) -> None:
    front, back = xen.device(3)
    session = begin(listener)
    assert session.receive()
    for path in (front, back):
        xen.store.xs_rm(next(iter(xen.store._handles)), 0, path.encode())
    assert not session.receive()
    session.write({"state": "5"})
    session.close()
    # Nothing was made anew where the toolstack had removed it.
    assert not any(name.startswith(back) for name in xen.store.nodes)
