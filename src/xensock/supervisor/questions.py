"""One guest's questions for names: decided, asked, remembered and recorded, however they arrived.

Rules
- A guest's bytes are hostile: they are parsed once (dnspython), and what is no plain question of
  class IN is answered here (FORMERR, NOTIMP, REFUSED) or dropped, never passed on.
- `Names.learn` comes before the answer leaves: the guest may connect at once.
- What is refused is counted: questions can carry data out, whatever becomes of them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Protocol

import dns.exception
import dns.message
import dns.rdatatype

from xensock.calls import Decision, Record, Verb
from xensock.policy.deferred import final
from xensock.stack import resolver_wire as wire
from xensock.stack.stacks import ExplainedAnswer
from xensock.supervisor import answers

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls import IPAddress
    from xensock.calls.record import Outcome, Path
    from xensock.policy.point import ResolvePolicy
    from xensock.supervisor.dns import Counts, LearnedNames, MessageResolver

PLAIN_UDP = 512  # bytes of an answer without EDNS (RFC 1035, 4.2.1)
UNDECIDED = Decision(True, "")

# Not records but requests to the server itself, or streams of messages: OPT, TKEY, TSIG, IXFR,
# AXFR, MAILB, MAILA.
_META = frozenset({41, 249, 250, 251, 252, 253, 254})
_ANY = 255
_TELLING = frozenset({wire.A, wire.AAAA, _ANY, 64, 65})  # and SVCB, HTTPS

_ERRORS = {wire.NXDOMAIN: errno.ENOENT, wire.SERVFAIL: errno.EAGAIN, wire.REFUSED: errno.EACCES}

log = logging.getLogger(__name__)


class Asked(Protocol):
    """Whose questions they are (see `supervisor.dns.DnsServer`)."""

    @property
    def guest(self) -> str: ...

    @property
    def resolver(self) -> MessageResolver: ...

    @property
    def policy(self) -> ResolvePolicy: ...

    @property
    def names(self) -> LearnedNames: ...

    @property
    def record(self) -> Callable[[Record], None]: ...

    @property
    def limit(self) -> int: ...

    @property
    def counts(self) -> Counts: ...


@dataclass(frozen=True, slots=True)
class _Outcome:
    """An answer and how it came about, for the record."""

    answer: bytes
    decision: Outcome
    rule: str
    path: Path
    addresses: int = 0
    hint: str = ""
    stripped: Decision | None = None  # why some of the addresses were taken out

    @property
    def why(self) -> Decision:
        """What was decided, for a frontend that asks."""
        return Decision(self.decision != "deny", self.rule, hint=self.hint)


class Questions:
    """Answers the questions of one guest, on one event loop."""

    def __init__(self, server: Asked) -> None:
        self._server = server
        self._under_way = 0

    async def answer(
        self, message: bytes, address: IPAddress | None, *, datagram: bool
    ) -> bytes | None:
        """The answer to a message; None when it deserves none."""
        found = await self.explained(message, address, datagram=datagram)
        return found[0] if found is not None else None

    async def explained(
        self, message: bytes, address: IPAddress | None, *, datagram: bool
    ) -> tuple[bytes, Decision] | None:
        """The answer to a message, and what was decided about it; None when it deserves none."""
        if len(message) < wire.HEADER or wire.head(message)[1] & wire.QR:
            return None
        if wire.head(message)[1] & wire.OPCODE:
            return wire.reply(message, None, wire.NOTIMP), UNDECIDED
        try:
            question = wire.read_question(message)
            query = dns.message.from_wire(message)
        except (wire.WireError, dns.exception.DNSException, ValueError):
            return wire.reply(message, None, wire.FORMERR), UNDECIDED
        if query.answer or query.authority:
            return wire.reply(message, None, wire.FORMERR), UNDECIDED
        if self._under_way >= self._server.limit:
            busy = f"limit: {self._server.limit} questions are under way"
            outcome = _Outcome(wire.reply(message, question, wire.SERVFAIL), "deny", busy, "")
            self._record(question, outcome, time.time(), 0.0)
            return outcome.answer, outcome.why
        started, clock = time.time(), time.monotonic()
        self._under_way += 1
        try:
            outcome = await self._decide(message, question, address)
        except Exception:
            # A fault of ours must not be silent for the guest, nor end its other questions.
            log.exception("resolving %s", question.name)
            outcome = _Outcome(wire.reply(message, question, wire.SERVFAIL), "", "", "")
        finally:
            self._under_way -= 1
        self._record(question, outcome, started, time.monotonic() - clock)
        answer = outcome.answer
        if datagram:
            room = max(PLAIN_UDP, query.payload) if query.edns >= 0 else PLAIN_UDP
            if len(answer) > room:
                answer = wire.reply(message, question, wire.rcode(answer), flags=wire.TC)
        return answer, outcome.why

    async def _decide(
        self, message: bytes, question: wire.Question, address: IPAddress | None
    ) -> _Outcome:
        if question.cls != wire.IN or question.type in _META:
            what = "zone transfers and classes other than IN are not passed on"
            return _Outcome(wire.reply(message, question, wire.REFUSED), "deny", what, "")
        own = _special(message, question)
        if own is not None:
            return own
        decision = self._server.policy.resolve(question.name)
        consult = getattr(self._server.policy, "consult_name", None)  # of a guest's policy point
        word = consult(question.name, decision) if consult is not None else None
        if word is not None:
            decision = await asyncio.wrap_future(word)
        if not decision.allowed:
            answer = wire.reply(message, question, wire.NXDOMAIN)
            return _Outcome(answer, "deny", decision.rule, "", hint=decision.hint)
        answer = await self._ask(decision, message, question, address)
        if isinstance(answer, ExplainedAnswer):
            decision = final(decision, answer.decision)
            if not decision.allowed:
                return _Outcome(answer, "deny", decision.rule, "", hint=decision.hint)
        if question.type not in _TELLING or wire.rcode(answer) != wire.NOERROR:
            return _Outcome(answer, "allow", decision.rule, "dns")
        return self._learn(answer, question, decision)

    async def _ask(
        self,
        decision: Decision,
        message: bytes,
        question: wire.Question,
        address: IPAddress | None,
    ) -> bytes:
        """The answer, in the network to which the rule about the name sends its calls."""
        resolver = self._server.resolver
        if not decision.via:
            return await resolver.query(message, address)
        elsewhere = getattr(resolver, "query_via", None)
        if elsewhere is None:
            return wire.reply(message, question, wire.SERVFAIL)
        answer: bytes = await elsewhere(decision.via, message, address)
        return answer

    def _learn(self, answer: bytes, question: wire.Question, decision: Decision) -> _Outcome:
        """Remember the addresses that an answer tells, and take out those that the name may not have."""
        by_name = decision.name is not None
        try:
            judge = self._judge(question.name) if by_name else None
            learnt = answers.read(answer, question, judge, ech=decision.verify is None)
        except (dns.exception.DNSException, ValueError):
            if not wire.head(answer)[1] & wire.TC:
                # What cannot be read cannot be remembered, and would be refused later.
                answer = wire.reply(answer, question, wire.SERVFAIL)
            elif by_name:
                answer = wire.reply(answer, question, wire.NOERROR, flags=wire.TC)
            return _Outcome(answer, "allow", decision.rule, "dns")
        if learnt.addresses:
            self._server.names.learn(question.name, learnt.addresses, learnt.ttl)
        refused = next(iter(learnt.refused.values()), None)
        if refused is None:
            return _Outcome(learnt.message, "allow", decision.rule, "dns", len(learnt.addresses))
        self._server.counts.stripped += len(learnt.refused)
        if not learnt.addresses:
            return _Outcome(learnt.message, "deny", refused.rule, "dns", hint=refused.hint)
        return _Outcome(
            learnt.message,
            "allow",
            decision.rule,
            "dns",
            len(learnt.addresses),
            stripped=refused,
        )

    def _judge(self, name: str) -> Callable[[IPAddress], Decision]:
        """Whether the name may have an address. What this host's own hosts file says is no stranger's word."""
        known = getattr(self._server.resolver, "hosts_names", None)

        def judge(address: IPAddress) -> Decision:
            if known is not None and name in known(address):
                return Decision(True, "the hosts file", name=name)
            return self._server.policy.answer(name, address)

        return judge

    def _record(
        self, question: wire.Question, outcome: _Outcome, started: float, duration: float
    ) -> None:
        self._server.counts.asked += 1
        self._server.counts.refused += outcome.decision == "deny"
        if outcome.stripped is not None:
            why = outcome.stripped
            taken = _Outcome(outcome.answer, "deny", why.rule, "dns", hint=why.hint)
            self._write(question, taken, started, duration)
        self._write(question, outcome, started, duration)

    def _write(
        self, question: wire.Question, outcome: _Outcome, started: float, duration: float
    ) -> None:
        code = wire.rcode(outcome.answer)
        error = 0 if code == wire.NOERROR else _ERRORS.get(code, errno.EIO)
        target = question.name
        if question.type not in (wire.A, wire.AAAA):
            target += f" {dns.rdatatype.to_text(dns.rdatatype.RdataType.make(question.type))}"
        self._server.record(
            Record(
                time=started,
                guest=self._server.guest,
                pid=0,  # a datagram does not say who sent it
                program="",
                verb=Verb.RESOLVE,
                target=target,
                name=question.name,
                decision=outcome.decision,
                rule=outcome.rule,
                hint=outcome.hint,
                datapath=outcome.path,
                result=-1 if error else outcome.addresses,
                error=error,
                duration=duration,
            )
        )


def _special(message: bytes, question: wire.Question) -> _Outcome | None:
    """The answer to a special-use name, which no server is asked for."""
    top = question.labels[-1] if question.labels else b""
    if top == b"localhost":  # RFC 6761, 6.3: always loopback, which is the guest's own
        records = {
            wire.A: [(wire.A, IPv4Address("127.0.0.1").packed)],
            wire.AAAA: [(wire.AAAA, IPv6Address("::1").packed)],
        }.get(question.type, [])
        answer = wire.reply(message, question, wire.NOERROR, records, ttl=86400)
        return _Outcome(answer, "guest", "localhost is the guest's own", "guest", len(records))
    if top in (b"invalid", b"onion"):  # RFC 6761, 6.4; RFC 7686
        answer = wire.reply(message, question, wire.NXDOMAIN)
        return _Outcome(answer, "guest", f".{top.decode()} names do not exist in DNS", "guest")
    return None
