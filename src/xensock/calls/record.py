"""One mediated call as it is remembered: for the trace, the audit and Python callers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["allow", "deny", "guest", ""]
Path = Literal["direct", "relay", "ring", "guest", "dns", ""]


@dataclass(frozen=True, slots=True)
class Record:
    """A call, what was decided, and how it ended.

    time       when it arrived, in seconds of unix time
    pid        of the caller, as the host sees it
    verb       a `Verb`, e.g. "connect"
    target     the destination, local address or name that was asked for
    name       the name by which the guest knows the address, if it does
    decision   "allow", "deny", "guest" (it stays inside the guest; nothing to decide), or ""
    rule       text of the rule or default that decided
    source     where the rule is written, as FILE:LINE; "" for options and defaults
    hint       for a refused call: the rule that would allow it
    datapath   what carries the bytes: "direct", "relay", "ring", "guest", "dns", or ""
    result     what the call returned (-1 on failure); for resolve: how many addresses
    error      errno of a failed call, else 0
    also       for a refused call: the rules that come next, the best first
    duration   seconds from arrival to answer; of an end -1 where the beginning was not seen
    user       id of the caller's user, as the host sees it; -1 where it is not known
    connection number of the connection that the call began; the record of its end has the same. 0: none
    accepted   whether others made the connection, to a listener of the guest's

    The end of a connection is a record, too: verb "close", `time` is its end, `duration` its life, `error` 0 after an
    orderly end, else what ended it, ENOTCONN where it never came about. Only such records have
    sent       bytes from the guest; None where nobody counted
    received   bytes to the guest
    """

    time: float
    guest: str
    pid: int
    program: str
    verb: str
    target: str
    name: str | None = None
    decision: Outcome = ""
    rule: str = ""
    hint: str = ""
    datapath: Path = ""
    result: int = 0
    error: int = 0
    duration: float = 0.0
    source: str = ""
    also: str = ""
    user: int = -1
    connection: int = 0
    accepted: bool = False
    sent: int | None = None
    received: int | None = None


def closed(
    begun: Record, moment: float, sent: int | None, received: int | None, error: int
) -> Record:
    """The record of the end, at `moment`, of the connection that a call's record is about."""
    return Record(
        time=moment,
        guest=begun.guest,
        pid=begun.pid,
        program=begun.program,
        verb="close",
        target=begun.target,
        name=begun.name,
        decision=begun.decision,
        rule=begun.rule,
        datapath=begun.datapath,
        result=-1 if error else 0,
        error=error,
        duration=moment - begun.time if begun.time else -1.0,
        user=begun.user,
        connection=begun.connection,
        accepted=begun.accepted,
        source=begun.source,
        sent=sent,
        received=received,
    )
