"""Questions for names, however they arrive: decided, remembered, recorded, bounded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import dns.rrset
import pytest

from xensock.calls import Protocol
from xensock.policy.names import Names
from xensock.policy.policy import Policy
from xensock.stack import resolver_wire as wire
from xensock.supervisor.dns import Counts
from xensock.supervisor.questions import Questions

if TYPE_CHECKING:
    from xensock.calls.record import Record


class Fixed:
    """A resolver that knows one address for every name, for `ttl` seconds; none, with `rcode`, where that is given."""

    def __init__(self, ttl: int = 60, rcode: dns.rcode.Rcode | None = None) -> None:
        self.ttl, self.rcode = ttl, rcode
        self.asked: list[object] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def query(self, message: bytes, server: object = None) -> bytes:
        self.asked.append(server)
        await self.gate.wait()
        query = dns.message.from_wire(message)
        response = dns.message.make_response(query)
        name = query.question[0].name.to_text()
        if self.rcode is not None:
            response.set_rcode(self.rcode)
        else:
            response.answer.append(dns.rrset.from_text(name, self.ttl, "IN", "A", "192.0.2.1"))
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


def ask(
    server_policy: Policy, *messages: bytes, resolver: Fixed | None = None
) -> tuple[Server, list[bytes | None]]:
    async def run() -> tuple[Server, list[bytes | None]]:
        server = Server(server_policy, resolver or Fixed())
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


@pytest.mark.parametrize("rcode", [dns.rcode.NOERROR, dns.rcode.NXDOMAIN, dns.rcode.SERVFAIL])
def test_a_negative_answer_is_passed_on_and_opens_nothing(rcode: dns.rcode.Rcode) -> None:
    policy = Policy.parse(["web.test:80"])
    server, (answer,) = ask(policy, question("web.test"), resolver=Fixed(rcode=rcode))
    assert answer is not None
    assert wire.rcode(answer) == rcode
    assert len(server.names) == 0
    assert server.records[0].result in (0, -1)
    assert server.records[0].decision == "allow"


def test_an_answer_with_no_time_to_live_opens_its_address_long_enough_to_connect() -> None:
    policy = Policy.parse(["web.test:80"])
    server, (answer,) = ask(policy, question("web.test"), resolver=Fixed(ttl=0))
    assert answer is not None
    assert dns.message.from_wire(answer).answer[0].ttl == 0
    address = ip_address("192.0.2.1")
    assert policy.connect(Protocol.TCP, address, 80, server.names.of(address)).allowed
    assert not policy.connect(Protocol.TCP, address, 80).allowed


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
