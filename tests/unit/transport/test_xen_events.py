"""The bridge that carries event channels. A socket pair is /dev/xen/evtchn here: it reports ports, and is told which to
unmask."""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest

from xensock import _core

if TYPE_CHECKING:
    from collections.abc import Iterator

BURST, DOMAIN_BURST = 256, 1024  # native/core/evbridge.h
PATIENCE = 10.0


class Device:
    """The hypervisor's side: `pending()` reports ports, `unmasked` counts how often each was written back."""

    def __init__(self) -> None:
        # As read(2) of the device: whole ports, at most so many at once.
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._ours.setblocking(False)
        self.bridge = _core.evbridge_open(self._theirs.fileno())
        self.waits: dict[int, int] = {}
        self.unmasked: dict[int, int] = {}

    def port(self, number: int, domain: int) -> int:
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        notify, self.waits[number] = os.eventfd(0, flags), os.eventfd(0, flags)
        _core.evbridge_add(self.bridge, number, domain, notify, self.waits[number])
        os.close(notify)
        self.unmasked[number] = 0
        return self.waits[number]

    def pending(self, ports: list[int]) -> None:
        data = struct.pack(f"={len(ports)}I", *ports)
        while data:
            select.select([], [self._ours], [], PATIENCE)
            data = data[self._ours.send(data[:4096]) :]
            self.take()

    def take(self, seconds: float = 0) -> None:
        if select.select([self._ours], [], [], seconds)[0]:
            data = self._ours.recv(1 << 20)
            for (number,) in struct.iter_unpack("=I", data):
                self.unmasked[number] += 1

    def until(self, port: int, count: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while self.unmasked[port] < count:
            assert time.monotonic() < deadline, self.unmasked
            self.take(0.1)

    def close(self) -> None:
        _core.evbridge_close(self.bridge)
        for fd in self.waits.values():
            os.close(fd)
        self._ours.close()
        self._theirs.close()


@pytest.fixture
def device() -> Iterator[Device]:
    made = Device()
    yield made
    made.close()


def ticks(start: float) -> int:
    """Turns that there were at most since then."""
    return int((time.monotonic() - start) * 1000) + 2


def test_an_event_wakes_its_port_and_is_unmasked(device: Device) -> None:
    one, two = device.port(5, 3), device.port(1029, 3)  # of one bucket
    device.pending([1029])
    device.until(1029, 1)
    assert os.eventfd_read(two) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(one)
    # One that nobody has is unmasked, too: whoever binds it next finds it as it has to be.
    device.unmasked[77] = 0
    device.pending([77])
    device.until(77, 1)


def test_a_storm_on_one_port_is_throttled(device: Device) -> None:
    device.port(5, 3)
    start = time.monotonic()
    device.pending([5] * 100_000)
    while ticks(start) < 20:
        device.take(0.01)
    # A real device reports a port again only once it is unmasked: that many events got through.
    assert 0 < device.unmasked[5] <= BURST * ticks(start)
    before = device.unmasked[5]
    device.pending([5])
    device.until(5, before + 1)


def test_a_storm_on_many_ports_is_throttled_for_their_domain(device: Device) -> None:
    ports = list(range(100, 1100))
    for number in ports:
        device.port(number, 3)
    quiet = device.port(5, 4)
    start = time.monotonic()
    device.pending(ports * 200)
    while ticks(start) < 20:
        device.take(0.01)
    through = sum(device.unmasked[number] for number in ports)
    # A tick also lets go those that had to wait, each once.
    assert 0 < through <= (DOMAIN_BURST + len(ports)) * ticks(start)
    device.pending([5])
    device.until(5, 1)
    assert os.eventfd_read(quiet) == 1


def test_a_domain_is_forgotten_with_its_last_port(device: Device) -> None:
    device.port(5, 3)
    device.port(6, 3)
    device.pending([5] * DOMAIN_BURST)
    _core.evbridge_remove(device.bridge, 5)
    device.pending([6])
    device.until(6, 1)
    _core.evbridge_remove(device.bridge, 6)
    os.close(device.waits.pop(6))
    device.port(6, 9)
    device.pending([6])
    device.until(6, 1)
    with pytest.raises(FileExistsError):
        device.port(6, 9)
