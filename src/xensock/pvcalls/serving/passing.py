"""A connection that another backend makes for a guest of this one.

The other backend may be slow to answer, or never do so; whatever waits for it does so on a thread of its network's, and
the event loop hears of it. Bytes go from the guest's ring through a pair of sockets of ours to the other ring.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from concurrent.futures import Executor

    from xensock.calls.address import Endpoint
    from xensock.calls.call import Decision

UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY, errno.EAGAIN)
DONE = (0, errno.EISCONN)


class Passed(Protocol):
    """A socket of another backend (stack.upstream has them). Its calls may wait for that backend."""

    decided: Decision | None  # about its last call, where it was asked

    def fileno(self) -> int:
        """A descriptor that is writable once it is known how connecting ended."""
        ...

    def setblocking(self, flag: bool, /) -> None:
        """Whether connecting waits for its end."""
        ...

    def connect_ex(self, address: object, /) -> int:
        """connect(2), its errno."""
        ...

    def splice(self, other: socket.socket, ended: Callable[[int, int, int], None], /) -> None:
        """Join a connected one with `other`, which is taken."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Passer(Protocol):
    """Another backend."""

    name: str

    def threads(self, hops: int, /) -> Executor:
        """For calls that so many backends pass on, and no others: a call waits for calls of more hops at most."""
        ...

    def make_passed(self, family: int, hops: int, /) -> Passed:
        """A stream socket of its network. Raises OSError."""
        ...


class Passing:
    """One attempt, from its start. Belongs to the event loop's thread.

    undecided   whether the other backend has not said anything yet
    """

    def __init__(self, by: Passer, to: Endpoint, hops: int = 1) -> None:
        """`hops`: how many backends pass it on, this one among them."""
        self._by = by
        self._to = to
        self._hops = hops
        self._threads = by.threads(hops)
        self._sock: Passed | None = None
        self.undecided = True
        self._error = errno.EAGAIN
        self._wake: Callable[[], None] | None = None
        self._closed = False
        self._watched = -1
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    def poll(self) -> int:
        """0, the errno of connect(2), or EAGAIN while it is under way."""
        return self._error

    def wake(self, call: Callable[[], None]) -> None:
        """Call this, instead of what was said before, when the attempt ends, or is decided."""
        self._wake = call

    @property
    def decided(self) -> Decision | None:
        """What the other backend decided, where it says so."""
        return self._sock.decided if self._sock is not None else None

    def splice(self, other: socket.socket) -> None:
        """Have the bytes of the connection go to `other`, which is taken. Raises OSError."""
        assert self._sock is not None
        sock, self._sock = self._sock, None
        try:
            sock.splice(other, lambda sent, received, error: None)
        except BaseException:
            other.close()
            self._drop(sock)
            raise

    def close(self) -> None:
        """The attempt is over; what was spliced goes on."""
        self._wake, self._closed = None, True
        self._task.cancel()
        self._unwatch()  # before its number is another descriptor's
        if self._sock is not None:
            sock, self._sock = self._sock, None
            self._drop(sock)

    async def _run(self) -> None:
        try:
            error = await self._ask(self._begin)
            self.undecided = False
            if error in UNDER_WAY and self._sock is not None:
                self._tell()
                await self._settled(self._sock.fileno())
                error = await self._ask(self._look)
        except OSError as failure:
            error = failure.errno or errno.EIO
        self._error = 0 if error in DONE else error
        if self._error in UNDER_WAY:
            self._error = errno.EIO  # nobody would ask again
        self._tell()

    def _tell(self) -> None:
        call, self._wake = self._wake, None
        if call is not None:
            call()

    async def _ask(self, work: Callable[[], int]) -> int:
        # It runs to its end whoever goes away: what it made is let go of below.
        return await asyncio.wrap_future(self._threads.submit(work))

    def _begin(self) -> int:
        """On a thread."""
        sock = self._by.make_passed(self._to.family, self._hops)
        sock.setblocking(False)
        if self._closed:
            sock.close()
            return errno.ECANCELED
        self._sock = sock
        error = self._look()
        if self._closed:
            sock.close()
        return error

    def _look(self) -> int:
        """On a thread."""
        sock = self._sock
        return sock.connect_ex(self._to.as_python()) if sock is not None else errno.ECANCELED

    async def _settled(self, fd: int) -> None:
        done = self._loop.create_future()

        def writable() -> None:
            if not done.done():
                done.set_result(None)

        self._loop.add_writer(fd, writable)
        self._watched = fd
        await done
        self._unwatch()

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._loop.remove_writer(self._watched)
            self._watched = -1

    def _drop(self, sock: Passed) -> None:
        with suppress(RuntimeError):  # the network is closed, and it with that
            self._threads.submit(sock.close)
