"""Which network carries a datagram of a backend's guest."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from xensock.calls import Decision, Endpoint, Protocol
from xensock.policy.networks import NO_WAY
from xensock.pvcalls.serving.beside import carried, networks

if TYPE_CHECKING:
    from collections.abc import Sequence

END = Endpoint(ip_address("192.0.2.1"), 7)
OWN = Endpoint(ip_address("192.0.2.2"), 0)


@dataclass
class Network:
    name: str
    error: int = 0
    passer: object = None
    decision: Decision | None = None

    def look(self, protocol: Protocol, end: Endpoint) -> Any:
        assert self.passer is None
        own = None if self.error else OWN
        return SimpleNamespace(error=self.error, own=own, decision=None)

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass
class Afar:
    """Sockets at a network that is another backend."""

    of: Network
    looked: list[Endpoint] = field(default_factory=list)

    def look(self, end: Endpoint) -> Any:
        self.looked.append(end)
        own = None if self.of.error else OWN
        return SimpleNamespace(error=self.of.error, own=own, decision=self.of.decision)


def judged(decision: Decision, *there: Network) -> tuple[Decision, Any, Endpoint | None]:
    class There:
        def carriers(self, names: Sequence[str]) -> list[Network]:
            return [each for name in names for each in there if each.name == name]

    guest: Any = SimpleNamespace(backend=SimpleNamespace(elsewhere=There()))
    afar: Any = {each: Afar(each) for each in there if each.passer is not None}
    return carried(decision, Protocol.UDP, END, networks(guest, decision), afar)


@pytest.mark.parametrize("via", [(), ("host",)])
def test_what_no_rule_sends_elsewhere_is_the_hosts(via: tuple[str, ...]) -> None:
    decision = Decision(True, "any", via=via)
    assert judged(decision, Network("host")) == (decision, None, None)


def test_the_first_that_has_a_way_carries_it() -> None:
    lab = Network("lab", errno.ENETDOWN, passer=object())
    away, office = Network("a", errno.ENETUNREACH), Network("b")
    rule = Decision(True, "any", via=("lab", "a", "b"))
    decision, network, own = judged(rule, lab, away, office)
    assert (decision.allowed, decision.rule, network, own) == (True, "any via b", office, OWN)
    decision, network, own = judged(rule, Network("lab", passer=object()), away, office)
    assert (decision.allowed, decision.rule, own) == (True, "any via lab", OWN)
    assert network is not None
    assert network.name == "lab"


def test_another_backend_refuses_by_its_own_word() -> None:
    """Nobody else is asked then."""
    theirs = Decision(False, "their rule", errno.EACCES, hint="ask them")
    lab = Network("lab", errno.EACCES, passer=object(), decision=theirs)
    decision, network, _ = judged(Decision(True, "any", via=("lab", "b")), lab, Network("b"))
    assert (decision.allowed, decision.rule, decision.hint) == (False, "their rule", "ask them")
    assert (decision.error, network) == (errno.EACCES, None)


def test_the_host_may_be_the_next() -> None:
    decision, network, _ = judged(Decision(True, "any", via=("a", "host")), Network("host"))
    assert (decision.allowed, decision.rule, network) == (True, "any via host", None)


@pytest.mark.parametrize("number", [errno.ENETUNREACH, errno.EHOSTUNREACH])
def test_what_none_carries_is_refused(number: int) -> None:
    decision, network, _ = judged(Decision(True, "any", via=("a",)), Network("a", number))
    assert (decision.allowed, decision.error, network) == (False, number, None)
    assert "no network of its via" in decision.rule
    assert decision.hint == NO_WAY


def test_a_refusal_stays_one() -> None:
    refused = Decision(False, "no", errno.EACCES, via=("a",))
    assert judged(refused, Network("a")) == (refused, None, None)
