"""Questions for names, however they arrive: decided, remembered, recorded, bounded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import dns.rrset

from xensock.policy.names import Names
from xensock.policy.policy import Policy
from xensock.stack import resolver_wire as wire
from xensock.supervisor.dns import Counts
from xensock.supervisor.questions import Questions

if TYPE_CHECKING:
    from xensock.calls.record import Record


class Fixed:
    """A resolver that knows one address for every name."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def query(self, message: bytes, server: object = None) -> bytes:
        self.asked.append(server)
        await self.gate.wait()
        query = dns.message.from_wire(message)
        response = dns.message.make_response(query)
        name = query.question[0].name.to_text()
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.1"))
        return response.to_wire()


@dataclass
class Server:
    policy: Policy
    resolver: Fixed
    limit: int = 2
    guest: str = "guest"
    names: Names = field(default_factory=Names)
    records: list[Record] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def record(self, one: Record) -> None:
        self.records.append(one)


def question(name: str, kind: str = "A") -> bytes:
    return dns.message.make_query(name, kind).to_wire()


def ask(server_policy: Policy, *messages: bytes) -> tuple[Server, list[bytes | None]]:
    async def run() -> tuple[Server, list[bytes | None]]:
        server = Server(server_policy, Fixed())
        questions = Questions(server)
        return server, [await questions.answer(m, None, datagram=True) for m in messages]

    return asyncio.run(run())


def test_an_answer_is_known_before_it_leaves_and_recorded() -> None:
    server, (answer,) = ask(Policy.parse(), question("web.test"))
    assert answer is not None
    assert wire.rcode(answer) == dns.rcode.NOERROR
    assert server.names.of(ip_address("192.0.2.1")) == ("web.test",)
    assert [(r.verb, r.target, r.result, r.decision) for r in server.records] == [
        ("resolve", "web.test", 1, "allow")
    ]


def test_a_refused_name_does_not_exist_and_is_not_asked_for() -> None:
    server, (answer,) = ask(Policy.parse(deny=["web.test"]), question("web.test"))
    assert answer is not None
    assert wire.rcode(answer) == dns.rcode.NXDOMAIN
    assert server.resolver.asked == []
    assert server.records[0].decision == "deny"


def test_what_is_no_question_is_answered_here_or_not_at_all() -> None:
    response = bytearray(question("web.test"))
    response[2] |= 0x80
    server, answers = ask(Policy.parse(), b"", b"short", bytes(response), question("web.test")[:20])
    assert answers[:3] == [None, None, None]
    assert answers[3] is not None
    assert wire.rcode(answers[3]) == dns.rcode.FORMERR
    assert server.resolver.asked == []


def test_questions_beyond_the_limit_are_refused_at_once() -> None:
    async def run() -> None:
        server = Server(Policy.parse(), Fixed())
        questions = Questions(server)
        server.resolver.gate.clear()
        slow = [
            asyncio.create_task(questions.answer(question(f"{n}.test"), None, datagram=True))
            for n in range(server.limit)
        ]
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(server.resolver.asked) == server.limit
        busy = await questions.answer(question("late.test"), None, datagram=True)
        assert busy is not None
        assert wire.rcode(busy) == dns.rcode.SERVFAIL
        server.resolver.gate.set()
        assert all(wire.rcode(a or b"") == dns.rcode.NOERROR for a in await asyncio.gather(*slow))

    asyncio.run(run())
