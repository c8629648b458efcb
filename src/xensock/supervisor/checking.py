"""What a rule says of a connection beside its way: its share of a limit, and which host its first bytes must name."""

from __future__ import annotations

import errno
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from xensock.calls.call import Decision, Protocol, Verb
from xensock.supervisor.relay import Terms
from xensock.supervisor.verifying import Check

if TYPE_CHECKING:
    from xensock.calls.address import Endpoint
    from xensock.policy.point import Point
    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor


def terms_of(
    sup: Supervisor, q: Question, end: Endpoint, decision: Decision
) -> Terms | Decision | None:
    """The terms of a guest's allowed connection; see terms_for."""
    return terms_for(sup.point, end, decision, q.tid, q.program)


def terms_for(
    point: Point, end: Endpoint, decision: Decision, pid: int, program: str
) -> Terms | Decision | None:
    """The terms of an allowed connection, None where there are none, or the refusal by a limit."""
    if decision.limit is None and decision.verify is None:
        return None
    terms = Terms()
    if decision.limit is not None:
        grant = point.grants.take(decision)
        if isinstance(grant, Decision):
            return grant
        terms.grant = grant
    if decision.verify is not None:
        terms.check = _check(point, end, decision, pid, program)
    return terms


def _check(point: Point, end: Endpoint, decision: Decision, pid: int, program: str) -> Check:
    assert decision.verify is not None  # the caller has looked
    target = str(end)

    def refused(why: str) -> None:
        point.write(
            Verb.SEND,
            target,
            wrong(decision, why),
            "deny",
            "",
            errno.ECONNRESET,
            pid=pid,
            program=program,
            start=time.monotonic_ns(),
            took=0,
        )

    return Check(decision.verify, lambda host: named(point, end, decision, host, pid), refused)


def named(point: Point, end: Endpoint, decision: Decision, host: str, pid: int) -> bool:
    """Whether the host that first bytes name is one of the rule's: the one that was looked up, or, for a rule with a
    wildcard, any other for which the same rule would decide."""
    if host == decision.name:
        return True
    other = point.policy.connect(Protocol.TCP, end.host, end.port, (host,), point.subject(pid))
    return (
        other.allowed
        and other.name == host
        and (other.rule, other.source)
        == (
            decision.rule,
            decision.source,
        )
    )


def wrong(decision: Decision, why: str) -> Decision:
    """The refusal of a connection whose first bytes are not what its rule demands."""
    where = f" at {decision.source}" if decision.source else ""
    return replace(
        decision,
        allowed=False,
        error=errno.ECONNRESET,
        cacheable=False,
        rule=f"verify of {decision.rule}: {why}",
        hint=f"name {decision.name}, or leave verify out of the rule{where}",
    )
