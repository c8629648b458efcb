"""One guest's questions for names: decided, asked, remembered and recorded, however they arrived.

Rules
- A guest's bytes are hostile: they are parsed once (dnspython), and what is no plain question of
  class IN is answered here (FORMERR, NOTIMP, REFUSED) or dropped, never passed on.
- `Names.learn` comes before the answer leaves: the guest may connect at once.
"""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Protocol, cast

import dns.exception
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype

from xensock.calls import Decision, Record, Verb
from xensock.policy.deferred import final
from xensock.stack import resolver_wire as wire
from xensock.stack.stacks import ExplainedAnswer

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls import IPAddress
    from xensock.calls.record import Outcome, Path
    from xensock.supervisor.dns import LearnedNames, MessageResolver, ResolvePolicy

PLAIN_UDP = 512  # bytes of an answer without EDNS (RFC 1035, 4.2.1)
_MAX_CHAIN = 16
UNDECIDED = Decision(True, "")

# Not records but requests to the server itself, or streams of messages: OPT, TKEY, TSIG, IXFR,
# AXFR, MAILB, MAILA.
_META = frozenset({41, 249, 250, 251, 252, 253, 254})
_ANY = 255

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


@dataclass(frozen=True, slots=True)
class _Outcome:
    """An answer and how it came about, for the record."""

    answer: bytes
    decision: Outcome
    rule: str
    path: Path
    addresses: int = 0
    hint: str = ""

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
        if not decision.allowed:
            answer = wire.reply(message, question, wire.NXDOMAIN)
            return _Outcome(answer, "deny", decision.rule, "", hint=decision.hint)
        answer = await self._server.resolver.query(message, address)
        if isinstance(answer, ExplainedAnswer):
            decision = final(decision, answer.decision)
            if not decision.allowed:
                return _Outcome(answer, "deny", decision.rule, "", hint=decision.hint)
        found = 0
        if question.type in (wire.A, wire.AAAA, _ANY) and wire.rcode(answer) == wire.NOERROR:
            try:
                addresses, ttl = _addresses(answer, question)
            except (dns.exception.DNSException, ValueError):
                if not wire.head(answer)[1] & wire.TC:
                    # What cannot be read cannot be remembered, and would be refused later.
                    answer = wire.reply(message, question, wire.SERVFAIL)
                addresses, ttl = [], 0
            found = len(addresses)
            if addresses:
                self._server.names.learn(question.name, addresses, ttl)
        return _Outcome(answer, "allow", decision.rule, "dns", found)

    def _record(
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


def _addresses(answer: bytes, question: wire.Question) -> tuple[list[IPAddress], int]:
    """All addresses that an answer gives the question's name, CNAME records followed, and for how
    many seconds they hold. Raises DNSException or ValueError for what cannot be read."""
    message = dns.message.from_wire(answer, ignore_trailing=True)
    name = dns.name.Name((*question.labels, b""))
    found: list[IPAddress] = []
    ttl = 0x7FFFFFFF
    for _ in range(_MAX_CHAIN):
        for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            records = message.get_rrset(message.answer, name, dns.rdataclass.IN, kind)
            if records is not None:
                found += [ip_address(record.address) for record in records]
                ttl = min(ttl, records.ttl)
        alias = message.get_rrset(message.answer, name, dns.rdataclass.IN, dns.rdatatype.CNAME)
        if alias is None:
            break
        ttl = min(ttl, alias.ttl)
        name = cast("dns.name.Name", alias[0].target)
    return found, ttl
