"""The stacks of one guest, and the table that says which carries what."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from xensock.stack.networks import unreachable

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from xensock.calls.address import Endpoint, IPAddress
    from xensock.calls.call import Decision
    from xensock.calls.call import Protocol as Transport
    from xensock.stack.networks import Networks


@dataclass(frozen=True, slots=True)
class Look:
    """What connecting a datagram socket showed, of which nothing is sent.

    error     0, or the errno of connect(2)
    own       the address that datagrams to there come from; None with an error
    decision  what the backend that carries them decided, where it is asked
    """

    error: int
    own: Endpoint | None = None
    decision: Decision | None = None


class Stack(Protocol):
    """Who carries calls out. `local`: this host's kernel, whose ports can be looked up here. `passer`: the stack itself
    if it is another backend, which may be slow to answer. `here`: it is the network of this process."""

    name: str
    local: bool
    here: bool

    @property
    def passer(self) -> Any:
        """See above."""
        ...

    def make(self, family: int, type: int, protocol: int, /) -> socket.socket:
        """A socket of its network. Raises OSError."""
        ...

    def create_server(self, host: str, port: int, family: int, dual: bool, /) -> socket.socket:
        """A listener; `dual`: for both families. Raises OSError."""
        ...

    def look(self, protocol: Transport, end: Endpoint, broadcast: bool = False, /) -> Look:
        """Whether and from where datagrams would be sent to `end`; `broadcast`: by a socket that may do that."""
        ...

    def live(self) -> int:
        """Connections that the stack moves bytes of."""
        ...

    def close(self, patience: float = 0, /) -> None:
        """Let go of it: what guests sent is delivered, for up to `patience` seconds."""
        ...


class Table(Protocol):
    """What is needed of `policy.routes.Routes`."""

    @property
    def default(self) -> str:
        """The name of the stack for everything that no route is about."""
        ...

    def of(
        self, protocol: Transport, host: IPAddress, port: int, names: Sequence[str] = (), /
    ) -> str:
        """The name of the stack that carries a destination."""
        ...

    def of_name(self, name: str, /) -> str:
        """The name of the stack that resolves a name."""
        ...


class Stacks:
    """Stacks by name, and the networks to which rules send calls. Guests listen on the default stack."""

    def __init__(
        self, table: Table, made: Sequence[Stack], networks: Networks | None = None
    ) -> None:
        self._table = table
        self._networks = networks
        self._by_name = {stack.name: stack for stack in made}

    @property
    def default(self) -> Stack:
        """Where guests listen, and what no route is about goes."""
        return self._by_name[self._table.default]

    def of(
        self, protocol: Transport, host: IPAddress, port: int, names: Sequence[str] = ()
    ) -> Stack:
        """The stack that carries a destination."""
        return self._by_name[self._table.of(protocol, host, port, names)]

    def carriers(
        self,
        via: Sequence[str],
        protocol: Transport,
        host: IPAddress,
        port: int,
        names: Sequence[str] = (),
    ) -> list[Stack]:
        """Who may carry a call, in their order: what its rule says (`via`), else the routes. Raises OSError:
        ENETUNREACH where none of its rule's networks is there."""
        if not via:
            return [self.of(protocol, host, port, names)]
        found = self._networks.find(via) if self._networks is not None else []
        if not found:
            raise unreachable(via)
        return [opened.stack for opened in found]

    def of_name(self, name: str) -> Stack:
        """The stack that resolves a name."""
        return self._by_name[self._table.of_name(name)]

    def live(self) -> int:
        """Connections that stacks move bytes of."""
        own = sum(stack.live() for stack in self._by_name.values())
        return own + (self._networks.live() if self._networks is not None else 0)

    def close(self, patience: float = 0) -> None:
        """Let go of all: what guests sent is delivered, for up to `patience` seconds each."""
        for stack in self._by_name.values():
            stack.close(patience)
        if self._networks is not None:
            self._networks.close(patience)


class DecidedError(OSError):
    """A call of a socket that another backend carries failed: it was refused, or allowed and failed there."""

    def __init__(self, number: int, decision: Decision) -> None:
        super().__init__(number, os.strerror(number))
        self.decision = decision


def decided(sock: socket.socket | None) -> Decision | None:
    """What the backend that carries a socket decided about its last call, where it was asked."""
    return getattr(sock, "decided", None)


class ExplainedAnswer(bytes):
    """A DNS message, and what the backend that sent it decided."""

    decision: Decision

    @classmethod
    def make(cls, message: bytes, decision: Decision) -> ExplainedAnswer:
        """Put the two together."""
        made = cls(message)
        made.decision = decision
        return made


class SplitResolver:
    """Asks each question of the stack that its name is routed to."""

    def __init__(self, stacks: Stacks, resolvers: dict[str, Query], name_of: NameOf) -> None:
        self._stacks = stacks
        self._resolvers = resolvers
        self._name_of = name_of

    async def query(self, message: bytes, server: IPAddress | None = None) -> bytes:
        """The answer to a DNS message. Raises OSError where the stack is gone."""
        resolver = self._resolvers[self._stacks.of_name(self._name_of(message)).name]
        return await resolver.query(message, server)


class Query(Protocol):
    """Who answers DNS messages."""

    async def query(self, message: bytes, server: IPAddress | None = None) -> bytes:
        """The answer; `server` is the one that the guest asked."""
        ...


if TYPE_CHECKING:
    NameOf = Callable[[bytes], str]
