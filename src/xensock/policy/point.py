"""The policy point of one guest: what its calls may do, and the record of what became of them.

Calls arrive by several ways (a supervisor's notifications, PV Calls commands); all of them are
decided and recorded here, so that no way knows more, or says less, than another.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from xensock.calls.call import Subject
from xensock.calls.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xensock.calls.address import Endpoint, IPAddress
    from xensock.calls.call import Decision, Protocol, Verb
    from xensock.calls.record import Outcome, Path
    from xensock.policy.policy import Policy

    NamesOf = Callable[[IPAddress], tuple[str, ...]]


class Point:
    """Decides by `policy` and writes to `record`, for the guest of that name.

    names_of   the names by which the guest knows an address
    record     takes each record; None: nobody keeps any
    labels     of the guest, which rules may ask for
    lapsed     the names by which the guest knew an address once: they explain a refusal
    """

    def __init__(
        self,
        guest: str,
        policy: Policy,
        names_of: NamesOf,
        record: Callable[[Record], None] | None,
        labels: Mapping[str, str] | None = None,
        lapsed: NamesOf = lambda address: (),
    ) -> None:
        self.guest = guest
        self.policy = policy
        self.names_of = names_of
        self.record = record
        self._lapsed = lapsed
        self._subject = Subject(labels=dict(labels or {}))
        self._epoch = time.time() - time.monotonic()

    @property
    def recording(self) -> bool:
        """Whether anybody keeps records; what only a record needs need not be found out otherwise."""
        return self.record is not None

    def subject(self, pid: int) -> Subject:
        """Who calls, as far as this policy asks. `pid` as the host sees it, 0 where it is not known."""
        if not pid or not self.policy.programs_needed:
            return self._subject
        return Subject(program_path(pid), self._subject.labels)

    def connect(self, protocol: Protocol, end: Endpoint, pid: int = 0) -> Decision:
        """May the guest reach this (unmapped) destination, by the names it knows it by?"""
        policy, subject = self.policy, self.subject(pid)
        if policy.names_needed:
            names = self.names_of(end.host)
            decision = policy.connect(protocol, end.host, end.port, names, subject)
            return (
                decision if decision.allowed else self._too_late(decision, protocol, end, subject)
            )
        decision = policy.connect(protocol, end.host, end.port, (), subject)
        if decision.allowed:
            return decision
        # The names make a better hint.
        return policy.connect(protocol, end.host, end.port, self.names_of(end.host), subject)

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

    def listen(
        self, protocol: Protocol, end: Endpoint, v6only: bool = False, pid: int = 0
    ) -> Decision:
        """May the guest listen at this (unmapped) local address?"""
        subject = self.subject(pid)
        return self.policy.listen(protocol, end.host, end.port, v6only, subject)

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
    ) -> None:
        """Record one call. `start` is of CLOCK_MONOTONIC; it and `took` are in nanoseconds."""
        if self.record is None:
            return
        self.record(
            Record(
                time=self._epoch + start / 1e9,
                guest=self.guest,
                pid=pid,
                program=program,
                verb=verb,
                target=target,
                name=decision.name or known_name(self.names_of, target),
                decision=outcome,
                rule=decision.rule,
                hint=decision.hint,
                datapath=datapath,
                result=-1 if error else value,
                error=error,
                duration=took / 1e9,
            )
        )


def known_name(names_of: NamesOf, target: str) -> str | None:
    """The name by which the guest learnt the address of `target`, if any."""
    host = target.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address: IPAddress = IPv6Address(host) if ":" in host else IPv4Address(host)
    except ValueError:
        return None
    return next(iter(names_of(address)), None)


def program_path(pid: int) -> str:
    """The path of the file that a process executes (proc(5), exe); "" where it cannot be told."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""
