"""Attempts that another backend makes: what they come to, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from world.namespaces import eventually
from xensock.calls.address import Endpoint
from xensock.pvcalls.serving.passing import Passing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xensock.calls.call import Decision

TO = Endpoint(ip_address("192.0.2.1"), 80)


class Other:
    """A socket of a backend that says these errors, one for each connect; writable from `settle` on."""

    def __init__(self, *errors: int) -> None:
        self.decided: Decision | None = None
        self.joined: socket.socket | None = None
        self.closed = False
        self._errors = list(errors)
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        try:
            while True:
                self._near.send(bytes(65536))
        except BlockingIOError:
            pass

    def settle(self) -> None:
        self._far.setblocking(False)
        try:
            while self._far.recv(65536):
                pass
        except BlockingIOError:
            pass

    def fileno(self) -> int:
        return self._near.fileno()

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def connect_ex(self, address: object) -> int:
        assert address == ("192.0.2.1", 80)
        return self._errors.pop(0)

    def splice(self, other: socket.socket, ended: Callable[[int, int, int], None]) -> None:
        self.joined = other
        self.close()

    def close(self) -> None:
        self.closed = True
        self._near.close()
        self._far.close()


class Backend:
    name = "lab"

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.gate = threading.Event()
        self.gate.set()
        self.made: list[Other] = []
        self.next: Other | OSError = Other()

    def threads(self, hops: int) -> ThreadPoolExecutor:
        assert hops == 1
        return self.pool

    def make_passed(self, family: int, hops: int) -> Other:
        assert (family, hops) == (socket.AF_INET, 1)
        self.gate.wait(10)
        if isinstance(self.next, OSError):
            raise self.next
        self.made.append(self.next)
        return self.next


@pytest.fixture
def backend() -> Iterator[Backend]:
    made = Backend()
    assert isinstance(made.next, Other)
    made.next.close()
    yield made
    made.gate.set()
    made.pool.shutdown()
    for each in made.made:
        each.close()


async def end_of(passing: Passing) -> int:
    """What it comes to."""
    while passing.poll() == errno.EAGAIN:
        told = asyncio.Event()
        passing.wake(told.set)
        await asyncio.wait_for(told.wait(), 10)
    return passing.poll()


def test_a_connection_that_takes_its_time(backend: Backend) -> None:
    async def run() -> None:
        backend.next = other = Other(errno.EINPROGRESS, errno.EISCONN)
        passing = Passing(backend, TO)
        assert passing.undecided
        told = asyncio.Event()
        passing.wake(told.set)
        await asyncio.wait_for(told.wait(), 10)
        assert (passing.undecided, passing.poll()) == (False, errno.EAGAIN)
        other.settle()
        assert await end_of(passing) == 0
        ours, theirs = socket.socketpair()
        passing.splice(theirs)
        passing.close()
        assert other.joined is theirs
        ours.close()
        theirs.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("errors", "number"),
    [
        ((errno.EACCES,), errno.EACCES),
        ((errno.EINPROGRESS, errno.ECONNREFUSED), errno.ECONNREFUSED),
        ((errno.EINPROGRESS, errno.EALREADY), errno.EIO),
    ],
)
def test_one_that_fails(backend: Backend, errors: tuple[int, ...], number: int) -> None:
    async def run() -> None:
        backend.next = other = Other(*errors)
        other.settle()
        passing = Passing(backend, TO)
        assert await end_of(passing) == number
        passing.close()

    asyncio.run(run())
    eventually(lambda: all(each.closed for each in backend.made), 10, "it is closed")


def test_one_that_cannot_be_made(backend: Backend) -> None:
    async def run() -> None:
        backend.next = OSError(errno.ENETDOWN, "gone")
        passing = Passing(backend, TO)
        assert await end_of(passing) == errno.ENETDOWN
        passing.close()

    asyncio.run(run())


def test_one_that_is_given_up_while_the_backend_hangs(backend: Backend) -> None:
    async def run() -> None:
        backend.gate.clear()
        backend.next = Other(errno.EINPROGRESS)
        passing = Passing(backend, TO)
        await asyncio.sleep(0)
        passing.close()
        await asyncio.sleep(0)
        backend.gate.set()

    asyncio.run(run())
    backend.pool.shutdown()
    assert all(each.closed for each in backend.made)
