"""Networks beside the host's own, to which rules send calls by name; each is there, or not for the moment.

Rules
- Nobody waits for a network: one that is away is tried again by a thread of its own, at most each RETRY_S, while
  calls ask for it. Those calls go to the next network that their rule names, or fail.
- No network of a call takes the place of another one that its rule does not name.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from xensock.stack import resolver_wire as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xensock.calls.address import IPAddress
    from xensock.stack.stacks import Query, Stack

    # Reaches a network, or raises OSError.
    Opener = Callable[[], "Opened"]

RETRY_S = 1.0


class Answers(Protocol):
    """Who answers DNS messages, and knows the hosts file."""

    async def query(self, message: bytes, server: IPAddress | None = None, /) -> bytes:
        """The answer. Raises OSError."""
        ...

    def hosts_names(self, address: IPAddress, /) -> tuple[str, ...]:
        """The names of an address in the hosts file."""
        ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A network that was reached: its stack, and who resolves names there."""

    stack: Stack
    resolver: Query

    @property
    def gone(self) -> bool:
        """Whether it has to be reached anew."""
        return bool(getattr(self.stack, "gone", False))


@dataclass(slots=True, eq=False)
class _Network:
    open: Opener
    opened: Opened | None = None
    tried: float = field(default_factory=time.monotonic)
    trying: bool = False


class Networks:
    """Networks by name. `always` are those that never go. `say` takes a line for a person."""

    def __init__(
        self, always: Sequence[Opened], openers: Mapping[str, Opener], say: Callable[[str], None]
    ) -> None:
        self._always = {opened.stack.name: opened for opened in always}
        self._say = say
        self._unknown = set[str]()  # networks that nobody has, as was said
        self._lock = threading.Lock()
        self._networks = {name: _Network(opener) for name, opener in openers.items()}
        self._left: list[Opened] = []  # gone, to be closed
        self._closed = False

    def open(self) -> None:
        """Reach them, before any call asks. Raises PermissionError for one that will never be there."""
        for name, network in self._networks.items():
            try:
                network.opened = network.open()
            except PermissionError:
                raise
            except OSError as error:
                why = error.strerror or str(error)
                self._say(f"the network {name} cannot be reached for now: {why}")

    def find(self, names: Sequence[str]) -> list[Opened]:
        """Those of these names that are there, in their order."""
        found = []
        for name in names:
            opened = self._always.get(name) or self._look(name)
            if opened is not None:
                found.append(opened)
        return found

    def carriers(self, names: Sequence[str]) -> list[Stack]:
        """The stacks of `find`."""
        return [opened.stack for opened in self.find(names)]

    def _look(self, name: str) -> Opened | None:
        network = self._networks.get(name)
        if network is None:
            with self._lock:
                new = name not in self._unknown
                self._unknown.add(name)
            if new:
                self._say(f"there is no network {name} here: rules send calls by it in vain")
            return None
        with self._lock:
            opened = network.opened
            if opened is not None and not opened.gone:
                return opened
            if opened is not None:
                self._left.append(opened)
                network.opened, network.tried = None, 0.0
            late = time.monotonic() - network.tried >= RETRY_S
            if late and not network.trying and not self._closed:
                network.trying = True
                threading.Thread(
                    target=self._try, args=(name, network), name=f"xs-reach-{name}", daemon=True
                ).start()
        return None

    def _try(self, name: str, network: _Network) -> None:
        opened = None
        try:
            opened = network.open()
        except OSError:
            pass  # next time
        finally:
            with self._lock:
                left, self._left = self._left, []
                closed = self._closed
                network.trying, network.tried = False, time.monotonic()
                if not closed:
                    network.opened = opened
        for each in left:
            each.stack.close()
        if opened is not None and closed:
            opened.stack.close()
        elif opened is not None:
            self._say(f"the network {name} can be reached now")

    def _all(self) -> list[Opened]:
        with self._lock:
            there = [network.opened for network in self._networks.values() if network.opened]
            return [*there, *self._left]

    def live(self) -> int:
        """Connections that they move bytes of."""
        return sum(opened.stack.live() for opened in self._all())

    def close(self, patience: float = 0) -> None:
        """Let go of all, as Stacks.close."""
        with self._lock:
            self._closed = True
        for opened in self._all():
            opened.stack.close(patience)


class NetworkResolver:
    """Answers as `home` does, and for names of other networks as those do."""

    def __init__(self, home: Query, files: Answers, networks: Networks) -> None:
        self._home = home
        self._files = files
        self._networks = networks

    async def query(self, message: bytes, server: IPAddress | None = None) -> bytes:
        """The answer to a DNS message whose name belongs to no other network. Raises OSError."""
        return await self._home.query(message, server)

    async def query_via(
        self, names: Sequence[str], message: bytes, server: IPAddress | None = None
    ) -> bytes:
        """The answer in the first of these networks that has one; SERVFAIL where none has."""
        answer = b""
        for opened in self._networks.find(names):
            try:
                answer = await opened.resolver.query(message, server)
            except OSError:
                continue
            if wire.rcode(answer) != wire.SERVFAIL:
                return answer
        return answer or wire.reply(message, wire.read_question(message), wire.SERVFAIL)

    def hosts_names(self, address: IPAddress) -> tuple[str, ...]:
        """The names of an address in this host's hosts file."""
        return self._files.hosts_names(address)


def unreachable(names: Sequence[str]) -> OSError:
    """That none of these networks is there."""
    return OSError(errno.ENETUNREACH, f"{os.strerror(errno.ENETUNREACH)}: {', '.join(names)}")
