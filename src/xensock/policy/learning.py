"""What a guest did, as the tightest policy that would have allowed it.

Rules
- What was allowed is written, whatever became of it; what was refused is named in comments.
- A destination is written by the name by which the guest knew it, else by its address. A name's address that is not
  public (see `rebinding`) stands there as well, and protected ones (loopback, link-local, metadata) by address alone.
- A name that was only looked up is written for port 53 of UDP, which ends at the backend: it may be asked for, and
  nothing else opens.
- Who may connect to a listener is left open: clients change.
- What the guest chose (names, paths) is hostile: only what reads back as the one rule that is meant is written.
"""

from __future__ import annotations

import json
import threading
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, TypeVar

from xensock.calls.call import Protocol, Verb
from xensock.policy.groups import destination_forms, protected_group
from xensock.policy.names import normal_name
from xensock.policy.policy import Policy, literal, name_literal
from xensock.policy.rules import RuleError
from xensock.policy.unix import PREFIX, parse_unix

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xensock.calls.address import IPAddress
    from xensock.calls.record import Record

T = TypeVar("T")
MOST = 10_000  # rules of each kind, and refusals
MARK = "# Written by `xensock run --learn`."
_EPHEMERAL = "1024-65535"
_CHOSEN_BY_NOBODY = ("--publish ", "listen = published", "answers only (")


class Learner:
    """Takes records, from any thread, and tells the policy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reached: dict[tuple[Protocol, IPAddress, int, str], None] = {}
        self._listened: dict[tuple[Protocol, IPAddress, int], None] = {}
        self._bound: set[int] = set()
        self._asked: dict[str, None] = {}
        self._paths: dict[str, None] = {}
        self._refused: dict[str, None] = {}
        self._left_out = 0

    def record(self, record: Record) -> None:
        """Remember one call."""
        with self._lock:
            if record.decision == "deny":
                self._keep(self._refused, f"{record.verb} {record.name or ''} {record.target}")
            elif record.decision == "allow" and record.datapath != "dns":
                self._allowed(record)
            elif record.verb == Verb.RESOLVE and record.decision == "allow" and not record.error:
                self._keep(self._asked, normal_name(record.name or record.target))

    def _allowed(self, record: Record) -> None:
        if record.rule.startswith(_CHOSEN_BY_NOBODY):
            return
        if record.target.startswith(PREFIX):
            self._keep(self._paths, record.target)
            return
        found = _place(record.target)
        if found is None:
            return
        protocol, host, port = found
        if record.verb in (Verb.CONNECT, Verb.SEND):
            name = normal_name(record.name or "")
            self._keep(self._reached, (protocol, host, port, name))
        elif record.verb == Verb.LISTEN or (record.verb == Verb.BIND and port):
            if record.verb == Verb.BIND:
                self._bound.add(port)
            self._keep(self._listened, (protocol, host, port))

    def _keep(self, kept: dict[T, None], item: T) -> None:
        if len(kept) < MOST or item in kept:
            kept[item] = None
        else:
            self._left_out += 1

    def text(self) -> str:
        """The policy file."""
        with self._lock:
            named, by_address, inner = self._destinations()
            reached = {name for *_, name in self._reached}
            asked = [_only_asked(name) for name in self._asked if name not in reached]
            lines = [f"{MARK} Read it before you rely on it.", ""]
            lines += _rules("", named)
            lines += _rules("Without a name.", by_address)
            lines += _rules("Addresses within this network that names above lead to.", inner)
            lines += _rules("Only looked up: nothing but the question is allowed.", asked)
            lines += _rules("", self._listeners())
            lines += _rules("", filter(None, map(_path, self._paths)))
            if self._refused:
                lines.append("# Refused, and not allowed here:")
                lines += [f"#   {json.dumps(each)}" for each in sorted(self._refused)]
            if self._left_out:
                lines.append(f"# {self._left_out} calls more were too many to be written.")
        return "\n".join(lines).rstrip("\n") + "\n"

    def _destinations(self) -> tuple[list[str], list[str], list[str]]:
        named, by_address, inner = [], [], []
        plain = Policy()
        for protocol, host, port, name in self._reached:
            rest = "" if protocol == Protocol.ICMP else f":{port}"
            rest += "" if protocol == Protocol.TCP else f"/{protocol}"
            here = f"{literal(host)}{rest}"
            text = name_literal(name, rest) if name else None
            if text is None or any(map(protected_group, destination_forms(host))):
                by_address.append(here)
                continue
            named.append(text)
            if not plain.answer(name, host).allowed:
                inner.append(here)
        return named, by_address, inner

    def _listeners(self) -> list[str]:
        texts = []
        for protocol, host, port in self._listened:
            where = "any" if host.is_unspecified else literal(host)
            # A port that the kernel chose is another one next time.
            chosen = protocol == Protocol.TCP and port not in self._bound
            suffix = "" if protocol == Protocol.TCP else f"/{protocol}"
            texts.append(f"listen:{where}:{_EPHEMERAL if chosen else port}{suffix}")
        return texts


def _place(target: str) -> tuple[Protocol, IPAddress, int] | None:
    """What the target of a record means, e.g. 192.0.2.1:443, [::1]:53/udp, 192.0.2.1/icmp."""
    where, _, word = target.partition("/")
    protocol = Protocol(word) if word in tuple(Protocol) else Protocol.TCP
    host, port = (where, "0") if protocol == Protocol.ICMP else where.rpartition(":")[::2]
    host = host.strip("[]").partition("%")[0]
    try:
        address: IPAddress = IPv6Address(host) if ":" in host else IPv4Address(host)
        return protocol, address, int(port)
    except ValueError:
        return None


def _only_asked(name: str) -> str | None:
    return name_literal(name, ":53/udp")


def _path(target: str) -> str | None:
    try:
        return f"{PREFIX}{parse_unix(target.removeprefix(PREFIX))}"
    except RuleError:
        return None


def _rules(comment: str, texts: Iterable[str | None]) -> list[str]:
    """One rule for all of them, each on a line of its own."""
    found = sorted({text for text in texts if text is not None})
    if not found:
        return []
    lines = [f"# {comment}"] if comment else []
    if len(found) == 1:
        return [*lines, "[[rule]]", f"allow = {json.dumps(found[0])}", ""]
    quoted = [f"    {json.dumps(text)}," for text in found]
    return [*lines, "[[rule]]", "allow = [", *quoted, "]", ""]
