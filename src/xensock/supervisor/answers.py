"""What a DNS answer tells a guest: the addresses that it may learn, and the answer without the others.

Rules
- The addresses of a name are those at the end of its chain of aliases (CNAME), and the hints of its HTTPS and SVCB
  records (RFC 9460, 7.3), which clients connect to without a question of their own.
- An address that is refused goes from everywhere in the message: from address records of every section and from
  hints. Signatures (RRSIG) over what was changed go too, and the claim that all was verified (AD).
- Nothing to take out: the message stays byte for byte what the server sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, cast

import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA
from dns.rdtypes.svcbbase import ParamKey, SVCBBase

from xensock.policy.groups import unmapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dns.rdata import Rdata
    from dns.rdtypes.ANY.CNAME import CNAME

    from xensock.calls import Decision, IPAddress
    from xensock.stack import resolver_wire as wire

    Judge = Callable[[IPAddress], Decision]

MOST_ALIASES = 16
_TELLING = (dns.rdatatype.A, dns.rdatatype.AAAA, dns.rdatatype.HTTPS, dns.rdatatype.SVCB)
_HINTS = (ParamKey.IPV4HINT, ParamKey.IPV6HINT)
_IN = dns.rdataclass.IN
_FOREVER = 0x7FFFFFFF


@dataclass(slots=True)
class Learnt:
    """What an answer told. `ttl` in seconds; `refused`: addresses that were taken out of `message`, and why."""

    message: bytes
    addresses: list[IPAddress] = field(default_factory=list)
    ttl: int = 0
    refused: dict[IPAddress, Decision] = field(default_factory=dict)


def read(answer: bytes, question: wire.Question, judge: Judge | None, ech: bool = True) -> Learnt:
    """Read an answer. `judge` says whether the name may have an address (None: any); without `ech`, HTTPS and SVCB
    records lose the keys for encrypted ClientHellos. Raises DNSException or ValueError for what cannot be read.
    """
    message = dns.message.from_wire(answer, ignore_trailing=True)
    learnt = Learnt(answer)
    if judge is not None or not ech:
        taken = _Sieve(judge, ech, learnt.refused)
        taken.sift(message)
        if taken.changed:
            learnt.message = message.to_wire(max_size=0xFFFF)
    learnt.addresses, learnt.ttl = _addresses(message, question)
    return learnt


def _addresses(
    message: dns.message.Message, question: wire.Question
) -> tuple[list[IPAddress], int]:
    """The addresses of the question's name, and for how many seconds they hold."""
    name = dns.name.Name((*question.labels, b""))
    found: dict[IPAddress, None] = {}
    ttl = _FOREVER
    # Not by the message's own index, which still names what was taken out.
    there = {(one.name, one.rdtype): one for one in message.answer if one.rdclass == _IN}
    for _ in range(MOST_ALIASES):
        for kind in _TELLING:
            records = there.get((name, kind))
            if records is not None:
                more = [address for record in records for address in _told(record)]
                found.update(dict.fromkeys(more))
                ttl = min(ttl, records.ttl) if more else ttl
        alias = there.get((name, dns.rdatatype.CNAME))
        if alias is None:
            break
        ttl = min(ttl, alias.ttl)
        name = cast("CNAME", alias[0]).target
    return list(found), ttl


def _told(record: Rdata) -> Iterable[IPAddress]:
    """The addresses that one record tells."""
    if isinstance(record, A | AAAA):
        yield _address(record)
    elif isinstance(record, SVCBBase):
        for key in _HINTS:
            for text in getattr(record.params.get(key), "addresses", ()):
                yield unmapped(ip_address(text))


def _address(record: A | AAAA) -> IPAddress:
    return unmapped(ip_address(record.address))


class _Sieve:
    """Takes out of a message what a guest may not learn."""

    def __init__(self, judge: Judge | None, ech: bool, refused: dict[IPAddress, Decision]) -> None:
        self._judge = judge
        self._ech = ech
        self._refused = refused
        self._allowed: set[IPAddress] = set()
        self.changed = False

    def sift(self, message: dns.message.Message) -> None:
        for section in (message.answer, message.authority, message.additional):
            touched = set()
            for number, records in enumerate(section):
                kept = [self._kept(record) for record in records]
                if any(old is not new for old, new in zip(records, kept, strict=True)):
                    touched.add((records.name, records.rdtype))
                    section[number] = _rrset(records, [one for one in kept if one is not None])
            section[:] = [
                records
                for records in section
                if len(records)
                and not (
                    records.rdtype == dns.rdatatype.RRSIG
                    and (records.name, records.covers) in touched
                )
            ]
            self.changed = self.changed or bool(touched)
        if self.changed:
            message.flags &= ~dns.flags.AD

    def _kept(self, record: Rdata) -> Rdata | None:
        """The record, what is left of it, or None."""
        if isinstance(record, A | AAAA):
            return record if self._may_have(_address(record)) else None
        if isinstance(record, SVCBBase):
            return self._service(record)
        return record

    def _service(self, record: SVCBBase) -> Rdata:
        params = dict(record.params)
        for key in _HINTS:
            texts = getattr(params.get(key), "addresses", ())
            left = [text for text in texts if self._may_have(unmapped(ip_address(text)))]
            if len(left) == len(texts):
                continue
            if left:
                params[key] = type(params[key])(left)
            else:
                del params[key]
        if not self._ech:
            params.pop(ParamKey.ECH, None)
        if params == record.params:
            return record
        must = getattr(params.pop(ParamKey.MANDATORY, None), "keys", ())
        must = [key for key in must if key in params]
        if must:
            params[ParamKey.MANDATORY] = type(record.params[ParamKey.MANDATORY])(must)
        return record.replace(params=params)

    def _may_have(self, address: IPAddress) -> bool:
        if self._judge is None or address in self._allowed:
            return True
        if address not in self._refused:
            decision = self._judge(address)
            if decision.allowed:
                self._allowed.add(address)
                return True
            self._refused[address] = decision
        return False


def _rrset(like: dns.rrset.RRset, records: list[Rdata]) -> dns.rrset.RRset:
    """These records, under the name, type and time to live of others."""
    made = dns.rrset.RRset(like.name, like.rdclass, like.rdtype, like.covers)
    made.update_ttl(like.ttl)
    for record in records:
        made.add(record, like.ttl)
    return made
