"""Several stacks of one guest."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

from xensock.calls.call import Protocol
from xensock.policy.routes import Route, Routes
from xensock.stack.kernel import Kernel
from xensock.stack.resolver_wire import read_question
from xensock.stack.stacks import SplitResolver, Stacks

QUESTION = b"\0\1\1\0\0\1\0\0\0\0\0\0\3git\4corp\7example\0\0\1\0\1"


class Named(Kernel):
    def __init__(self, name: str, closed: list[str]) -> None:
        self.name = name
        self._closed = closed

    def close(self, patience: float = 0) -> None:
        self._closed.append(self.name)

    async def query(self, message: bytes, server: object = None) -> bytes:
        return self.name.encode()


def make(*routes: str) -> tuple[Stacks, dict[str, Named], list[str]]:
    closed: list[str] = []
    made = {name: Named(name, closed) for name in ("host", "vpn", "backend")}
    table = Routes(tuple(Route.parse(text) for text in routes), "backend")
    return Stacks(table, list(made.values())), made, closed


def test_the_table_chooses_and_the_default_listens() -> None:
    stacks, made, closed = make("10.0.0.0/8=vpn", "198.51.100.0/24=host")
    assert stacks.default is made["backend"]
    assert stacks.of(Protocol.TCP, ip_address("10.1.1.1"), 80) is made["vpn"]
    assert stacks.of(Protocol.TCP, ip_address("198.51.100.1"), 80) is made["host"]
    assert stacks.of(Protocol.TCP, ip_address("203.0.113.1"), 80) is made["backend"]
    stacks.close()
    assert sorted(closed) == ["backend", "host", "vpn"]


def test_names_are_asked_where_they_are_routed() -> None:
    stacks, made, _ = make("*.corp.example=vpn")
    resolver = SplitResolver(stacks, dict(made), lambda message: read_question(message).name)
    assert asyncio.run(resolver.query(QUESTION)) == b"vpn"
    assert asyncio.run(resolver.query(QUESTION.replace(b"corp", b"work"))) == b"backend"
