"""The policy point of one guest: what its calls may do, and the record of what became of them.

Calls arrive by several ways (a supervisor's notifications, PV Calls commands); all of them are
decided and recorded here, so that no way knows more, or says less, than another.
"""

from __future__ import annotations

import os
import time
import typing
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol, Subject, Verb
from xensock.calls.record import Record
from xensock.policy.grants import Grants
from xensock.policy.names import normal_name
from xensock.policy.networks import ended

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Future

    from xensock.calls.address import IPAddress
    from xensock.calls.record import Outcome, Path
    from xensock.policy.asking import Asker
    from xensock.policy.gate import Gate
    from xensock.policy.hooks import Call
    from xensock.policy.policy import Policy

    NamesOf = Callable[[IPAddress], tuple[str, ...]]


NEAR = "its group"


class Near(typing.Protocol):
    """Guests that one may reach by names of their own; see backend.groups."""

    def find(self, name: str) -> Sequence[IPAddress]:
        """Their addresses, if the name is one of theirs."""

    def connect(self, protocol: Protocol, end: Endpoint) -> Decision | None:
        """What becomes of a connect, if the address is one of theirs."""


class ResolvePolicy(typing.Protocol):
    """Who decides about names."""

    def resolve(self, name: str) -> Decision:
        """Whether the guest may ask for `name` (lower-case, no final dot)."""

    def answer(self, name: str, address: IPAddress) -> Decision:
        """Whether a name that a rule allowed may have this address."""


class Current:
    """The policy that is in force, for one guest or for many; another takes its place as a whole."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy


def in_force(policy: Policy | Current) -> Policy:
    """The policy that holds now."""
    return policy.policy if isinstance(policy, Current) else policy


class Point:
    """Decides by `policy`, which may be one that others replace, and writes to `record`, for the guest of that name.

    names_of   the names by which the guest knows an address
    record     takes each record; None: nobody keeps any
    labels     of the guest, which rules may ask for
    lapsed     the names by which the guest knew an address once: they explain a refusal
    keep       forgets every pair of name and address for which what it is given is False (Names.keep)
    gate       what refuses everything for the moment, if anything does; then no verdict is cached
    near       other guests that this one may reach by names of their own
    asker      who is asked about destinations that no rule is about
    """

    def __init__(
        self,
        guest: str,
        policy: Policy | Current,
        names_of: NamesOf,
        record: Callable[[Record], None] | None,
        labels: Mapping[str, str] | None = None,
        lapsed: NamesOf = lambda address: (),
        keep: Callable[[Callable[[str, IPAddress], bool]], None] = lambda right: None,
        gate: Gate | None = None,
        near: Near | None = None,
        asker: Asker | None = None,
    ) -> None:
        self.guest = guest
        self._near = near
        self._asker = asker
        self.current = policy if isinstance(policy, Current) else Current(policy)
        self.names_of = names_of
        self.record = record
        self.grants = Grants()
        self._lapsed = lapsed
        self._keep = keep
        self._generation = self.current.policy.generation
        self._gate = gate
        self._subject = Subject(labels=dict(labels or {}))
        self.epoch = time.time() - time.monotonic()  # unix time where CLOCK_MONOTONIC began

    @property
    def recording(self) -> bool:
        """Whether anybody keeps records; what only a record needs need not be found out otherwise."""
        return self.record is not None and getattr(self.record, "active", True)

    def keeps(self, outcome: str) -> bool:
        """Whether a call with this outcome is recorded: refused ones are, if by anybody, while all others are not."""
        return self.recording or (outcome == "deny" and self.record is not None)

    @property
    def policy(self) -> Policy:
        """What decides now."""
        return self.current.policy

    @property
    def labels(self) -> Mapping[str, str]:
        """Of the guest."""
        return self._subject.labels

    def subject(self, pid: int) -> Subject:
        """Who calls, as far as this policy asks. `pid` as the host sees it, 0 where it is not known."""
        if not pid or not self.policy.programs_needed:
            return self._subject
        return Subject(program_path(pid), self._subject.labels)

    def connect(self, protocol: Protocol, end: Endpoint, pid: int = 0) -> Decision:
        """May the guest reach this (unmapped) destination, by the names it knows it by?"""
        if self._gate is None:
            return self._connect(protocol, end, pid)
        return self._gate() or replace(self._connect(protocol, end, pid), cacheable=False)

    def _connect(self, protocol: Protocol, end: Endpoint, pid: int) -> Decision:
        if self._near is not None and (found := self._near.connect(protocol, end)) is not None:
            return found
        policy, subject = self.policy, self.subject(pid)
        if policy.generation != self._generation:
            self._recall(policy)
        names = self.names_of(end.host) if policy.names_needed else ()
        decision = policy.connect(protocol, end.host, end.port, names, subject)
        if decision.allowed:
            return decision
        # The names make a better hint.
        names = names or self.names_of(end.host)
        decision = policy.connect(protocol, end.host, end.port, names, subject)
        if self.record is not None:
            decision = policy.worded(decision, protocol, end.host, end.port, names, subject)
        if policy.names_needed:
            return self._too_late(decision, protocol, end, subject)
        return decision

    def _recall(self, policy: Policy) -> None:
        """Another policy holds: what the guest learnt under the last one it must not have by rules of this one."""

        def right(name: str, address: IPAddress) -> bool:
            by_rule = policy.resolve(name, self._subject).name is not None
            return not by_rule or policy.answer(name, address, self._subject).allowed

        self._keep(right)
        self._generation = policy.generation

    def _too_late(
        self, decision: Decision, protocol: Protocol, end: Endpoint, subject: Subject
    ) -> Decision:
        """A refusal, which says so where the address was allowed until its name's answer lapsed."""
        names = self._lapsed(end.host)
        before = self.policy.connect(protocol, end.host, end.port, names, subject)
        if not names or not before.allowed:
            return decision
        hint = f"resolve {before.name} again, its answer has lapsed; or {decision.hint}"
        return replace(decision, hint=hint)

    def still(self, end: Endpoint, pid: int = 0) -> Decision:
        """May a connection that was made stay? By the names by which the guest knew its peer, too."""
        if self.policy.generation != self._generation:
            self._recall(self.policy)
        names = (*self.names_of(end.host), *self._lapsed(end.host))
        return self.policy.connect(Protocol.TCP, end.host, end.port, names, self.subject(pid))

    def listen(
        self, protocol: Protocol, end: Endpoint, v6only: bool = False, pid: int = 0
    ) -> Decision:
        """May the guest listen at this (unmapped) local address?"""
        refused = self._gate() if self._gate is not None else None
        if refused is not None:
            return refused
        subject = self.subject(pid)
        decision = self.policy.listen(protocol, end.host, end.port, v6only, subject)
        return self.heard(decision, protocol)

    def join(self, group: IPAddress, port: int, pid: int = 0) -> Decision:
        """May a socket of the guest's that is bound to this port (UDP), or to none yet (0), be in a multicast group?"""
        return (self._gate and self._gate()) or self.policy.join(group, port, self.subject(pid))

    def heard(self, decision: Decision, protocol: Protocol = Protocol.TCP) -> Decision:
        """A decision about a listener: where a hook is asked about clients, the relay takes them."""
        hooks = self.policy.hooks
        if hooks is None or "accept" not in hooks.verbs or protocol != Protocol.TCP:
            return decision
        return replace(decision, needs_relay=True) if decision.allowed else decision

    def consult(
        self, verb: Verb, decision: Decision, protocol: Protocol, end: Endpoint, pid: int = 0
    ) -> Future[Decision] | None:
        """Who else is asked about a call of which `decision` says what the rules do; None: nobody.

        What comes of it is never to be cached, and void once another policy is in force. `end` is as for the verb; of
        accept it is the client with the guest's port.
        """
        policy = self.policy
        hooks = policy.hooks
        if not self.consults(verb) or self._settled(decision):
            return None
        names = self.names_of(end.host) if verb == Verb.CONNECT else ()
        if hooks is None or verb not in hooks.verbs:
            if self._asker is None or not policy.unknown(decision):
                return None
            return self._asker.ask(decision, protocol, end, names, _called(pid))
        return hooks.ask(
            self._call(verb, decision, protocol, str(end.host), end.port, pid, names), decision
        )

    def consults(self, verb: Verb) -> bool:
        """Whether anybody beside the rules may be asked about such calls."""
        hooks = self.policy.hooks
        return (hooks is not None and verb in hooks.verbs) or (
            self._asker is not None and verb == Verb.CONNECT
        )

    def consult_name(self, name: str, decision: Decision) -> Future[Decision] | None:
        """As `consult`, about a name that the guest asks for."""
        hooks = self.policy.hooks
        if hooks is None or Verb.RESOLVE not in hooks.verbs or self._settled(decision):
            return None
        call = self._call(Verb.RESOLVE, decision, Protocol.UDP, normal_name(name), 53, 0, ())
        return hooks.ask(call, decision)

    def _settled(self, decision: Decision) -> bool:
        """Whether the decision stands, whoever might be asked."""
        shut = self._gate is not None and self._gate() is not None
        return shut or decision.rule == NEAR or self.policy.final(decision)

    def _call(
        self,
        verb: Verb,
        decision: Decision,
        protocol: Protocol,
        host: str,
        port: int,
        pid: int,
        names: tuple[str, ...],
    ) -> Call:
        from xensock.policy.hooks import Call

        return Call(
            typing.cast("typing.Any", str(verb)),
            self.guest,
            str(protocol),
            host,
            port,
            names,
            pid,
            program_path(pid) if pid else "",
            self.labels,
            decision.allowed,
            decision.rule,
        )

    def resolve(self, name: str) -> Decision:
        """May the guest ask for this name?"""
        if self._gate is not None and (shut := self._gate()):
            return shut
        if self._near is not None and self._near.find(name):
            return Decision(True, NEAR, name=name)
        decision = self.policy.resolve(name, self._subject)
        if self._asker is not None and not decision.allowed and self.policy.unknown(decision):
            # Who asks for it must know where it leads before anybody can be asked about that.
            return Decision(True, "--ask: names resolve", name=normal_name(name))
        return decision

    def answer(self, name: str, address: IPAddress) -> Decision:
        """May the guest learn this address for a name that a rule allows?"""
        if self._near is not None and address in self._near.find(name):
            return Decision(True, NEAR, name=name)
        return self.policy.answer(name, address, self._subject)

    def accept(self, client: Endpoint, port: int) -> Decision:
        """May this (unmapped) client connect to the port on which the guest listens?"""
        return (self._gate and self._gate()) or self.policy.accept(
            client.host, port, subject=self._subject
        )

    def admit(self, client: Endpoint, port: int) -> bool | Future[bool]:
        """Whether a client is admitted, as soon as it is known; recorded where a rule or a hook decided."""
        decision = self.accept(client, port)
        where = Endpoint(client.host, port, client.scope)
        asked = self.consult(Verb.ACCEPT, decision, Protocol.TCP, where)
        if asked is None:
            return self._admit(client, decision)
        from concurrent.futures import Future

        known: Future[bool] = Future()
        asked.add_done_callback(lambda f: known.set_result(self._admit(client, f.result())))
        return known

    def _admit(self, client: Endpoint, decision: Decision) -> bool:
        if decision.source or not decision.allowed or not decision.rule.startswith("default: "):
            outcome: Outcome = "allow" if decision.allowed else "deny"
            self.write(
                Verb.ACCEPT,
                str(client),
                decision,
                outcome,
                "relay" if decision.allowed else "",
                decision.error,
                pid=0,
                program="",
                start=time.monotonic_ns(),
                took=0,
            )
        return decision.allowed

    def name(self, decision: Decision, address: IPAddress | None) -> str | None:
        """What a record calls a destination besides its address."""
        if decision.name or address is None:
            return decision.name
        return next(iter(self.names_of(address)), None)

    def write(
        self,
        verb: Verb,
        target: str,
        decision: Decision,
        outcome: Outcome,
        datapath: Path,
        error: int,
        *,
        pid: int,
        program: str,
        start: int,
        took: int,
        value: int = 0,
        user: int = -1,
        connection: int = 0,
    ) -> Record | None:
        """Record one call; what was recorded. `start` is of CLOCK_MONOTONIC; it and `took` are in nanoseconds."""
        if self.record is None:
            return None
        record = self.make(
            verb,
            target,
            decision,
            outcome,
            datapath,
            error,
            pid=pid,
            program=program,
            start=start,
            took=took,
            value=value,
            user=user,
            connection=connection,
        )
        self.record(record)
        return record

    def make(
        self,
        verb: Verb,
        target: str,
        decision: Decision,
        outcome: Outcome,
        datapath: Path,
        error: int,
        *,
        pid: int,
        program: str,
        start: int,
        took: int,
        value: int = 0,
        user: int = -1,
        connection: int = 0,
    ) -> Record:
        """The record of one call, as `write`."""
        decision = ended(decision, error)
        return Record(
            time=self.epoch + start / 1e9,
            guest=self.guest,
            pid=pid,
            program=program,
            verb=verb,
            target=target,
            name=self.name(decision, address_of(target)),
            decision=outcome,
            rule=decision.rule,
            hint=decision.hint,
            datapath=datapath,
            result=-1 if error else value,
            error=error,
            duration=took / 1e9,
            user=user_of(pid) if user < 0 else user,
            connection=connection,
            source=decision.source,
            also=decision.also,
        )


def address_of(target: str) -> IPAddress | None:
    """The address in the target of a record, if it has one."""
    host = target.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return IPv6Address(host) if ":" in host else IPv4Address(host)
    except ValueError:
        return None


def user_of(pid: int) -> int:
    """The id of a process's user; -1 where it cannot be told. Guests of an ordinary user have that one only."""
    own = os.geteuid()
    if own or not pid:
        return own if pid else -1
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def _called(pid: int) -> str:
    """A process, for a person: its short name (proc(5), comm) and number."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return f"{comm.read().rstrip()}[{pid}]"
    except OSError:
        return "a program"


def program_path(pid: int) -> str:
    """The path of the file that a process executes (proc(5), exe); "" where it cannot be told."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""
