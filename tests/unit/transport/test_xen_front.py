"""The frontend's side between Xen domains: who has the device."""

from __future__ import annotations

import errno
import select
import threading
from typing import TYPE_CHECKING

import pytest
from xenkit import Xen

from xensock.transport import xen_front
from xensock.transport.base import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xensock.transport.xen_front import XenSession

PATIENCE = 10.0


class Device:
    """One of domain 7, and a backend that is always ready: it lets go, and waits, as soon as it is asked to."""

    def __init__(self, xen: Xen) -> None:
        self.xen = xen
        self.front, self.back = xen.device(7)
        self.turns: list[str] = []
        self._asks = threading.Condition()
        self._handle = xen.store.xs_open(0)
        xen.store.xs_watch(self._handle, f"{self.front}/state".encode(), b"")
        self._over = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        answers = {"1": "2", "3": "4", "5": "6", "6": "6"}
        while not self._over:
            select.select([self.xen.store.xs_fileno(self._handle)], [], [], PATIENCE)
            while self.xen.store.xs_check_watch(self._handle):
                state = self.state
                with self._asks:
                    self.turns.append(state)
                    self._asks.notify_all()
                if state in answers:
                    self.xen.store.set(f"{self.back}/state", answers[state])

    @property
    def state(self) -> str:
        return self.xen.store.nodes[f"{self.front}/state"]

    def close(self) -> None:
        self._over = True
        self.xen.store.set(f"{self.front}/state", "0")
        self._thread.join(PATIENCE)
        self.xen.store.xs_close(self._handle)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    xen = Xen(monkeypatch)
    made = Device(xen)
    xen.domain = 7
    yield made
    made.close()
    xen.ports.end()


@pytest.fixture
def take(device: Device) -> Iterator[Callable[[], XenSession]]:
    """Sessions, closed at the end."""
    made: list[XenSession] = []

    def connect() -> XenSession:
        made.append(xen_front.connect(0, timeout=PATIENCE))
        return made[-1]

    yield connect
    for session in made:
        session.close()


def test_a_device_that_is_not_there(device: Device) -> None:
    with pytest.raises(OSError, match="no device pvcalls/1") as caught:
        xen_front.connect(1)
    assert caught.value.errno == errno.ENODEV


def test_a_session_leaves_the_device_at_rest(
    device: Device, take: Callable[[], XenSession]
) -> None:
    session = take()
    assert session.nodes["state"] == "2"
    session.close()
    assert device.state == "6"


@pytest.mark.parametrize("how", ["write", "close"])
def test_an_earlier_session_does_not_write_over_a_later_one(
    device: Device, take: Callable[[], XenSession], how: str
) -> None:
    earlier = take()
    earlier.write({"state": "4"})
    later = take()
    later.write({"state": "3"})
    if how == "write":
        with pytest.raises(TransportError) as caught:
            earlier.write({"state": "6"})
        assert caught.value.errno == errno.ECONNRESET
    earlier.close()
    assert device.state == "3"
    later.wait_for(lambda nodes: nodes["state"] == "4", PATIENCE)


def test_a_conflict_in_xenstore_is_tried_again(
    device: Device, take: Callable[[], XenSession]
) -> None:
    session = take()
    device.xen.store.conflicts = 2
    session.write({"port": "9", "state": "3"})
    assert device.xen.store.nodes[f"{device.front}/port"] == "9"
    assert device.xen.store.conflicts == 0


def test_two_who_take_it_at_once(
    device: Device, take: Callable[[], XenSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session's word comes between ours and our first state."""
    whole = xen_front.Store.remove

    def remove(store: xen_front.Store, path: str, names: list[str]) -> None:
        whole(store, path, names)
        device.xen.store.set(f"{device.front}/{xen_front.OWNER}", "another's")

    monkeypatch.setattr(xen_front.Store, "remove", remove)
    with pytest.raises(OSError, match="another takes this device") as caught:
        take()
    assert caught.value.errno == errno.EBUSY
