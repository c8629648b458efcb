"""What every transport offers: a store, grants of memory, event channels.

A *session* is one frontend's connection to one backend. Its frontend side is used by threads, its
backend side by one asyncio loop. Whatever a transport carries in memory or store was written by
the other side and may change while it is read: copy once, validate the copy.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from xensock.wire.extensions import Extension

PAGE = 4096
"""Bytes per page, which is what one grant reference names, whatever this machine's page size."""

Nodes = Mapping[str, str]
"""Store keys relative to the device's directory, and their values."""


class TransportError(OSError):
    """The session is unusable: `errno` is ENOTCONN (never was, or we closed it), ECONNRESET (the
    other side vanished), ECONNREFUSED (it did not want us) or what the system said."""


class ProtocolError(Exception):
    """The other side broke the transport's rules; `str()` is the reason to give it and to log."""


class GrantError(Exception):
    """References or a port that the frontend has not granted, or a limit reached. `errno` is what
    the command that named them is answered with: EINVAL, ENOMEM, ENFILE or EBUSY."""

    def __init__(self, reason: str, error: int = errno.EINVAL) -> None:
        super().__init__(reason)
        self.errno = error


@dataclass(frozen=True, slots=True)
class Limits:
    """What one frontend may hold of a backend; less where the process is short of descriptors or
    mappings (`transport.budget`)."""

    regions: int = 4096
    """Regions of memory granted at a time (one descriptor each)."""
    pages: int = 1 << 19
    """Pages mapped at a time; also the most that all regions together may have (2 GiB)."""
    mappings: int = 40960
    """Memory mappings at a time: each run of adjacent references is one."""
    ports: int = 16400
    """Event channels that the frontend has made (two descriptors each)."""
    store_bytes: int = 256 * 1024
    """Keys and values of the frontend's part of the store."""


class Event(Protocol):
    """One side of an event channel. Events do not count: many notifications may wake once."""

    @property
    def port(self) -> int:
        """The event channel's number as commands name it, from 1 on."""
        ...

    @property
    def notify_fd(self) -> int:
        """eventfd(2) by which the other side is woken: write 8 bytes, native u64 1."""
        ...

    @property
    def wait_fd(self) -> int:
        """eventfd(2) that is readable after the other side notified. Reading it may block where
        the other side made it so: `clear()` does not."""
        ...

    def notify(self) -> None:
        """Wake the other side. Never blocks, never fails: whoever is gone needs no event."""
        ...

    def clear(self) -> bool:
        """Forget events received; whether there were any. Never blocks. Look at the ring after."""
        ...

    def close(self) -> None:
        """Let go of the descriptors. The port may then be used anew by the frontend. Idempotent."""
        ...


class Pages(Protocol):
    """Memory that the frontend granted to the backend, zeroed at first."""

    @property
    def memory(self) -> memoryview:
        """Writable, contiguous, `len(refs) * PAGE` bytes."""
        ...

    @property
    def refs(self) -> tuple[int, ...]:
        """One grant reference per page, in order. Never 0."""
        ...

    def free(self) -> None:
        """The backend has no use for these pages any more (it answered so). Idempotent. They may
        be handed out anew, zeroed, once every view of `memory` but this object's is gone."""
        ...


class FrontSession(Protocol):
    """The frontend's side. All methods may be called from any thread, of the process that made
    the session only: in a child of fork(2) they raise RuntimeError."""

    @property
    def nodes(self) -> Nodes:
        """A copy of the backend's nodes as last seen."""
        ...

    @property
    def error(self) -> TransportError | None:
        """Why the session is over, None while it is not."""
        ...

    def allocate(self, pages: int) -> Pages:
        """Grant zeroed pages. Raises OSError: ENOMEM, ENOSPC (limit), or TransportError."""
        ...

    def event(self) -> Event:
        """Make an event channel. Raises OSError: EMFILE, ENOSPC (limit), or TransportError."""
        ...

    def write(self, nodes: Nodes) -> None:
        """Write nodes of ours in one transaction. Raises TransportError."""
        ...

    def wait_for(self, predicate: Callable[[Nodes], bool], timeout: float | None = None) -> Nodes:
        """The backend's nodes once `predicate` holds for them. `timeout` in seconds.

        Raises TimeoutError, or TransportError when the session ended first.
        """
        ...

    def on_change(self, callback: Callable[[Nodes], None]) -> None:
        """Call this from the session's own thread after each change of the backend's nodes, and a
        last time when the session is over (`error` says why). At most one callback; it must not
        block. If the session is over already it is called at once, by the caller's thread."""
        ...

    def fileno(self) -> int:
        """The connection's descriptor; readable and hung up when the backend vanished."""
        ...

    def close(self) -> None:
        """End the session and free what it holds. Calls under way raise TransportError. Idempotent.
        Memory of pages that somebody still looks at stays until that view is gone."""
        ...


class BackSession(Protocol):
    """The backend's side. Not for several threads at once; nothing here blocks."""

    @property
    def lacks(self) -> frozenset[Extension]:
        """Extensions that this transport cannot carry: they are not announced."""
        ...

    @property
    def waits(self) -> bool:
        """Whether a frontend may take its time before it begins, as a domain does that boots."""
        ...

    @property
    def guest(self) -> str:
        """The frontend's name of itself, to be shown only; "" until it has introduced itself."""
        ...

    @property
    def labels(self) -> Mapping[str, str]:
        """What rules may ask for about the frontend (`policy.file.RuleTable.labels`). From others than itself."""
        ...

    @property
    def uid(self) -> int:
        """User id of the frontend's process, from the kernel (SO_PEERCRED)."""
        ...

    @property
    def pid(self) -> int:
        """Process id of the frontend's process, from the kernel; 0 where it is not visible."""
        ...

    @property
    def nodes(self) -> Nodes:
        """The frontend's nodes as last received. Text from outside: printable ASCII, bounded."""
        ...

    def fileno(self) -> int:
        """Readable when `receive()` has something to do; -1 after `close()`."""
        ...

    def receive(self) -> bool:
        """Take in what the frontend sent; call when `fileno()` is readable (level-triggered).

        False: the frontend is gone, call `close()`. A bounded number of messages is taken per
        call. Raises ProtocolError: call `close(str(error))`.
        """
        ...

    def write(self, nodes: Nodes) -> None:
        """Change nodes of ours, `state` among them, in one transaction. What the connection cannot
        take at once is kept and sent by a later `receive()` (the newest values only). Raises
        ProtocolError if the frontend has not read for too long."""
        ...

    def share(self, memory: int, pages: int) -> int:
        """Give the frontend pages of ours, a sealed memfd (extension shared-rings); the number by
        which it knows them. Raises OSError when it does not take them now."""
        ...

    def introduce(self, number: int, event: int) -> None:
        """Tell the frontend how to wake the other guest of these pages: an eventfd. Raises OSError."""
        ...

    def map(self, refs: Sequence[int]) -> memoryview:
        """The pages of these references, contiguous in this order and writable.

        They stay mapped until the view and everything made from it are released, even when the
        session is closed before; nothing the frontend does can make an access fail. A reference
        may be mapped more than once. Raises GrantError.
        """
        ...

    def bind(self, port: int) -> Event:
        """Our side of the frontend's event channel, with descriptors of its own: the caller closes
        it. Raises GrantError: unknown port (EINVAL) or already bound (EBUSY)."""
        ...

    def close(self, reason: str = "") -> None:
        """Tell the frontend `reason` if it still listens, and let go of everything but mapped
        views and bound events. Idempotent."""
        ...


class Listener(Protocol):
    """Where a backend waits for frontends. Not for several threads at once."""

    @property
    def url(self) -> str:
        """What a frontend gives to `connect()` to come here."""
        ...

    def fileno(self) -> int:
        """Readable when `accept()` has something to do; -1 after `close()`."""
        ...

    def accept(self) -> BackSession | None:
        """The next frontend; None when there is none (any more). Never blocks.

        Raises PermissionError for one whose credentials are not admitted (it was told and closed;
        the message names its uid and pid), OSError (EMFILE, ENOMEM) when the system cannot.
        """
        ...

    def close(self) -> None:
        """Stop listening; sessions go on. Idempotent."""
        ...
