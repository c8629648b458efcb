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
    hint       for a refused call: the rule that would allow it
    datapath   what carries the bytes: "direct", "relay", "ring", "guest", "dns", or ""
    result     what the call returned (-1 on failure); for resolve: how many addresses
    error      errno of a failed call, else 0
    duration   seconds from arrival to answer
    source     where the rule is written, as FILE:LINE; "" for options and defaults
    also       for a refused call: the rules that come next, the best first
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
