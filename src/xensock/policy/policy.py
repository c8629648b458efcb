"""The policy point: may this guest connect there, listen here, take this client, resolve this name?

Rules
- The most specific rule that matches decides (policy.entries says which that is); of equals, the deny rule. An option
  --deny that matches wins over any other.
- A policy of options: with --allow for connecting, every other destination is refused; with one for listening,
  every other local address and port. Without: connect to public and private addresses, listen
  on port 0 and from 1024 on. A policy with a file: what no rule allows is refused.
- The host's loopback, link-local addresses and metadata services open only to a rule that names
  them: by their group, by an exact address, by a network inside the group. `any`, a wide network,
  or a name do not open them: whoever answers for an allowed name could point it at the host.
- A deny rule by address also holds for the form of it that a NAT64 gateway translates. An allow
  rule for a group must hold for both forms.
- A socket bound to 0.0.0.0 listens on every IPv4 address, one bound to :: on every address there
  is: allowed only if all of them are, refused if one of them is. Port 0 is "some free port"; ask
  again once its number is known.
- Whoever reaches a listener may connect to it, unless a rule for accept says otherwise.
- Names: see `Policy.resolve`.
"""

from __future__ import annotations

import errno
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from xensock.calls.call import NOBODY, Decision, Protocol
from xensock.policy import rebinding
from xensock.policy.entries import ONE_HOST, Entry, Terms, network_rank
from xensock.policy.groups import GROUPS, AddressSet, destination_forms, protected_group, unmapped
from xensock.policy.index import ALLOWS, DENIES, SPECIAL, Doubts, Found, Index, better
from xensock.policy.names import normal_name
from xensock.policy.networks import RESERVED
from xensock.policy.rules import Rule, RuleError, parse_rule, parse_rules
from xensock.policy.unix import UnixRules, is_unix, parse_unix

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xensock.calls.address import IPAddress
    from xensock.calls.call import Subject
    from xensock.policy.hooks import Hooks
    from xensock.policy.networks import Network

_generations = count(1)
LAST = 1 << 20  # above the host of any other rule
_SHOWN = 3  # runners-up in a record
_KNOWN = 4096  # destinations whose decision is remembered

_PROTECTED = {
    "loopback": "default: host loopback",
    "metadata": "default: metadata service",
    "linklocal": "default: link-local address",
}
# Groups to which any name may lead; see Policy.resolve.
_WIDE = ("any", "public", "private")


class Policy:
    """An immutable set of rules. `generation` differs between any two policies of a process:
    an answer that was cached under another generation is void.

    names_needed     whether any rule is by name; otherwise nobody need find names out
    networks_needed  whether any rule says which network carries its calls
    programs_needed  whether any rule asks which program calls
    accepts_judged   whether any rule is about clients
    title            what the rules are called where none matches; "" for a policy of options alone
    hooks            code that is asked about calls, too, by whoever carries them out (`Point.consult`)
    close_on_reload  whether connections that this policy forbids end when it takes another's place
    networks         those that rules name by `via`, beside the backend's own
    unix_datagrams   whether guests that begin have unix sockets for datagrams
    """

    def __init__(
        self,
        rules: Iterable[tuple[Rule, Terms]] = (),
        unix: UnixRules | None = None,
        *,
        title: str = "",
        close_on_reload: bool = False,
        networks: Iterable[Network] = (),
        hooks: Hooks | None = None,
        unix_datagrams: bool = True,
    ) -> None:
        self.unix_datagrams = unix_datagrams
        self.networks = tuple(networks)
        self.generation = next(_generations)
        self.title = title
        self.close_on_reload = close_on_reload
        self.hooks = hooks
        self._unix = unix or UnixRules()
        self.entries = tuple(Entry(rule, terms, at) for at, (rule, terms) in enumerate(rules))
        self._labelled = any(entry.terms.labels for entry in self.entries)
        self._by_labels: dict[frozenset[tuple[str, str]], Policy] = {}
        connect = [entry for entry in self.entries if entry.rule.direction == "connect"]
        self._final = tuple(entry for entry in connect if entry.terms.final)
        self._index = Index(entry for entry in connect if not entry.terms.final)
        self._doubts = Doubts(connect)
        listen = [entry for entry in self.entries if entry.rule.direction == "listen"]
        listen.sort(key=lambda entry: entry.key, reverse=True)
        self._listen_deny = tuple(entry for entry in listen if not entry.allow)
        self._listen_allow = tuple(entry for entry in listen if entry.allow)
        accept = [entry for entry in self.entries if entry.rule.direction == "accept"]
        self._accept = Index(accept, guarded=False)
        self.accepts_judged = bool(accept)
        self._accept_closed = any(entry.allow for entry in accept)
        self._known: dict[tuple[Protocol, IPAddress, int], Decision] = {}
        self.names_needed = any(entry.name for entry in connect)
        self.networks_needed = any(entry.terms.via for entry in self.entries)
        self.programs_needed = any(entry.program for entry in self.entries)
        allow = [entry for entry in connect if entry.allow]
        self._opening = [entry.rule for entry in allow]
        self._any_allow = bool(allow or title)
        self._names_closed = bool(title and not allow) or any(e.name for e in allow)
        if any(e.rule.group in _WIDE or whole(e, 4) or whole(e, 6) for e in allow):
            self._names_closed = False

    @classmethod
    def parse(cls, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> Policy:
        """Read the rules as given on the command line. Raises RuleError for the first bad one."""
        return cls(*options(allow, deny))

    def for_labels(self, labels: Mapping[str, str]) -> Policy:
        """The policy of a guest with these labels, without the rules that ask for others."""
        if not self._labelled:
            return self
        key = frozenset(labels.items())
        found = self._by_labels.get(key)
        if found is None:
            kept = [(entry.rule, entry.terms) for entry in self.entries if entry.holds(labels)]
            found = Policy(
                kept,
                self._unix,
                title=self.title,
                close_on_reload=self.close_on_reload,
                networks=self.networks,
                hooks=self.hooks,
                unix_datagrams=self.unix_datagrams,
            )
            found._labelled = False
            self._by_labels[key] = found
        return found

    def connect(
        self,
        protocol: Protocol,
        host: IPAddress,
        port: int,
        names: Sequence[str] = (),
        subject: Subject = NOBODY,
    ) -> Decision:
        """May the guest reach this destination? `names` are those by which it learned the
        address (`Names.of`). Refused with EACCES."""
        if self._labelled:
            return self.for_labels(subject.labels).connect(protocol, host, port, names, subject)
        key = (protocol, host, port)
        decision = self._known.get(key)
        if decision is None:
            decision = self._connect(protocol, host, port, names, subject.program)
            if decision.allowed and decision.cacheable:  # a refusal's hint depends on the names
                if len(self._known) >= _KNOWN:
                    self._known.clear()
                self._known[key] = decision
        return decision

    def _connect(
        self, protocol: Protocol, host: IPAddress, port: int, names: Sequence[str], program: str
    ) -> Decision:
        # The common case first: an IPv4 address means itself.
        forms = (host,) if host.version == 4 and int(host) else destination_forms(host)
        index = self._index
        node = index.node(forms[0])
        if names and self.names_needed and not (len(names) == 1 and names[0] in index.exact):
            names = [normal_name(name) for name in names]
        if self._final:
            decision = self._denied_at_last(protocol, forms, port, names, program)
            if decision is not None:
                return decision
        protected = node.protected
        named = None
        if names and index.by_name and len(forms) == 1:
            named = index.of_names(names, protocol, port, program, protected is not None)
            if named and named[0][0] > node.rank:
                return named[0][1].by_name(named[1])
        found = index.of_node(node, forms, protocol, port, program)
        for form in forms[1:]:
            inner = index.node(form)
            protected = protected or inner.protected
            denied = _deny_of(index.of_node(inner, (form,), protocol, port, program))
            if denied and (found is None or better(denied, found)):
                found = denied
        if names and index.by_name and len(forms) > 1:
            named = index.of_names(names, protocol, port, program, bool(protected))
        if named and (found is None or better(named[0], found)):
            return named[0][1].by_name(named[1])
        doubts = self._doubts.of(protocol, port)
        if found is None:
            return self._otherwise(protocol, forms, port, names, protected, doubts)
        entry = found[1]
        if doubts & ((DENIES | SPECIAL) if entry.allow else (ALLOWS | SPECIAL)):
            return entry.for_now
        return entry.always

    def _denied_at_last(
        self,
        protocol: Protocol,
        forms: tuple[IPAddress, ...],
        port: int,
        names: Sequence[str],
        program: str,
    ) -> Decision | None:
        for entry in self._final:
            held = entry.addresses
            if held is None or not entry.takes(protocol, port, program):
                continue
            if any(form in held for form in forms):
                return entry.always
        for entry in self._final:
            if entry.name and entry.takes(protocol, port, program):
                name = entry.rule.named(names)
                if name is not None:
                    return entry.by_name(name)
        return None

    def _otherwise(
        self,
        protocol: Protocol,
        forms: tuple[IPAddress, ...],
        port: int,
        names: Sequence[str],
        protected: str | None,
        doubts: int,
    ) -> Decision:
        """What holds for a destination that no rule decided."""
        if protected:
            reason = _PROTECTED[protected]
        elif self.title:
            reason = f"default: not in {self.title}"
        elif self._any_allow:
            reason = "default: not in --allow"
        else:
            groups = [
                next((g for g in ("public", "private") if form in GROUPS[g]), None)
                for form in forms
            ]
            if None not in groups:
                fixed = not doubts & (DENIES | SPECIAL)
                return Decision(True, f"default: {groups[0]} addresses", cacheable=fixed)
            reason = "default: neither public nor private"
        hint = connect_hint(protocol, forms[0], port, () if protected else names)
        return Decision(
            False,
            reason,
            errno.EACCES,
            cacheable=not doubts & (ALLOWS | SPECIAL),
            hint=hint,
            close_on_reload=self.close_on_reload,
        )

    def worded(
        self,
        decision: Decision,
        protocol: Protocol,
        host: IPAddress,
        port: int,
        names: Sequence[str] = (),
        subject: Subject = NOBODY,
    ) -> Decision:
        """A refusal with what a person wants to know: the rules that come next, and the smallest that would allow."""
        if self._labelled:
            return self.for_labels(subject.labels).worded(
                decision, protocol, host, port, names, subject
            )
        forms = destination_forms(host)
        names = [normal_name(name) for name in names]
        found = self._index.matching(forms, names, protocol, port, subject.program)
        also = [
            each for each in found if each[1].terms.source != decision.source or not decision.source
        ]
        hint = decision.hint
        if decision.source and found:
            hint = self._opening_hint(found, forms, protocol, port, names) or hint
        shown = [
            f"{_word(e)} {e.rule.text} ({e.terms.source or 'option'})" for _, e in also[:_SHOWN]
        ]
        return replace(decision, hint=hint, also=", ".join(shown))

    def _opening_hint(
        self,
        found: list[Found],
        forms: tuple[IPAddress, ...],
        protocol: Protocol,
        port: int,
        names: Sequence[str],
    ) -> str:
        """The option that would allow what the rules in `found` refuse; "" where none would."""
        protected = any(map(protected_group, forms))
        hints = [connect_hint(protocol, forms[0], port, () if protected else names)]
        rest = _suffix(protocol) if protocol == Protocol.ICMP else f":{port}{_suffix(protocol)}"
        hints.append(f"--allow {literal(forms[0])}{rest}")
        if protocol == Protocol.TCP:
            hints += [f"{hint}/tcp" for hint in hints]
        for hint in hints:
            rule = parse_rule(hint.removeprefix("--allow "))
            rank = ONE_HOST if rule.name else rank_at(rule, forms[0])
            entry = Entry(rule, Terms(True), -1)
            if all(each[1].allow or better((rank, entry), each) for each in found):
                return hint
        return ""

    def listen(
        self,
        protocol: Protocol,
        host: IPAddress,
        port: int,
        v6only: bool = False,
        subject: Subject = NOBODY,
    ) -> Decision:
        """May the guest listen (for UDP: be bound) at this local address? `v6only` matters for
        `::` alone (IPV6_V6ONLY). Refused with EACCES."""
        host = unmapped(host)
        versions: tuple[int, ...] = ()
        if int(host) == 0:
            versions = (6, 4) if host.version == 6 and not v6only else (host.version,)
        found: list[Found | None] = [None]
        if versions:
            found = [self._listen_every(protocol, port, version, subject) for version in versions]
        else:
            found = [self._listen_one(protocol, host, port, subject)]
        deciding = [each[1] for each in found if each is not None]
        refused = next((entry for entry in deciding if not entry.allow), None)
        if refused is not None:
            return refused.always
        if len(deciding) == len(found):
            texts = dict.fromkeys(entry.rule.text for entry in deciding)
            return self._listens(protocol, port, subject, ", ".join(texts), deciding[0])
        if self.title:
            reason = f"default: not in {self.title}"
        elif self._listen_allow:
            reason = "default: not in --allow listen:"
        elif port == 0 or port >= 1024:
            return self._listens(protocol, port, subject, "default: ports from 1024", None)
        else:
            reason = "default: ports below 1024"
        where = "any" if versions else literal(host)
        hint = f"--allow listen:{where}:{port}{_suffix(protocol)}"
        return Decision(
            False, reason, errno.EACCES, hint=hint, close_on_reload=self.close_on_reload
        )

    def _listens(
        self, protocol: Protocol, port: int, subject: Subject, text: str, entry: Entry | None
    ) -> Decision:
        """Allowed; clients that a rule might refuse are asked about by the relay alone."""
        judged = protocol == Protocol.TCP and any(
            each.low <= port <= each.high or port == 0
            for each in self._accept.entries
            if each.holds(subject.labels)
        )
        limit = entry.terms.limit if entry is not None else None
        return Decision(
            True,
            text,
            limit=limit,
            needs_relay=judged or limit is not None,
            source=entry.terms.source if entry is not None else "",
        )

    def _listen_one(
        self, protocol: Protocol, host: IPAddress, port: int, subject: Subject
    ) -> Found | None:
        """The rule that decides about one local address."""
        best: Found | None = None
        for entry in (*self._listen_deny, *self._listen_allow):
            if not entry.suits(protocol, port, subject) or host not in _set(entry.rule):
                continue
            found = LAST if entry.terms.final else rank_at(entry.rule, host), entry
            if best is None or better(found, best):
                best = found
        return best

    def join(self, group: IPAddress, port: int, subject: Subject = NOBODY) -> Decision:
        """May a socket that is bound to this UDP port, or to none yet (0), be in a multicast group? By a rule to listen
        that names groups, never by default. Refused with EACCES."""
        best: Found | None = None
        for entry in (*self._listen_deny, *self._listen_allow):
            rule = entry.rule
            # A socket that has no port is asked about again when it gets one.
            if not entry.suits(Protocol.UDP, port or rule.low, subject) or group not in _set(rule):
                continue
            if entry.allow and not any(n.is_multicast and group in n for n in rule.networks):
                continue
            if not entry.allow and not port and not rule.every_port:
                continue
            found = LAST if entry.terms.final else rank_at(rule, group), entry
            if best is None or better(found, best):
                best = found
        if best is not None:
            return best[1].always
        hint = f"--allow listen:{literal(group)}{f':{port}' if port else ''}/udp"
        return Decision(
            False,
            "default: multicast groups need a rule of their own",
            errno.EACCES,
            hint=hint,
            close_on_reload=self.close_on_reload,
        )

    def _listen_every(
        self, protocol: Protocol, port: int, version: int, subject: Subject
    ) -> Found | None:
        """The rule that decides about all addresses of one version of IP. One that refuses some of them is more
        specific than any that allows all."""
        best: Found | None = None
        for entry in (*self._listen_deny, *self._listen_allow):
            if not entry.suits(protocol, port, subject):
                continue
            if whole(entry, version):
                found = LAST if entry.terms.final else 0, entry
            elif not entry.allow and _set(entry.rule).touches(version):
                found = LAST if entry.terms.final else 1, entry
            else:
                continue
            if best is None or better(found, best):
                best = found
        return best

    def accept(
        self, client: IPAddress, port: int, program: str = "", subject: Subject = NOBODY
    ) -> Decision:
        """May this client connect to the port (TCP) on which the guest listens?"""
        if self._labelled:
            return self.for_labels(subject.labels).accept(client, port, program)
        forms = destination_forms(client)
        found = self._accept.of_node(
            self._accept.node(forms[0]), forms, Protocol.TCP, port, program
        )
        if found is not None:
            return found[1].always
        if not self._accept_closed:
            return Decision(True, "default: clients of a listener")
        reason = f"default: not in {self.title or '--allow accept:'}"
        hint = f"--allow accept:{literal(forms[0])}:{port}"
        return Decision(
            False, reason, errno.EACCES, hint=hint, close_on_reload=self.close_on_reload
        )

    @staticmethod
    def unknown(decision: Decision) -> bool:
        """Whether a default decided about a destination that anybody might open."""
        return decision.rule.startswith("default: ") and decision.rule not in _PROTECTED.values()

    def final(self, decision: Decision) -> bool:
        """Whether it is the refusal of an option --deny, over which nothing stands."""
        return not decision.allowed and any(e.rule.text == decision.rule for e in self._final)

    def unix(self, path: str) -> Decision:
        """May the guest reach this socket of the host's file system? Refused with EACCES."""
        return self._unix.connect(path)

    def resolve(self, name: str, subject: Subject = NOBODY) -> Decision:
        """May the guest resolve this name? Refused with NXDOMAIN (`error` is 0).

        Refused are names that a deny rule without port and protocol matches, and, as soon as an
        allow rule is by name, all that no allow rule matches: what cannot be connected to need
        not be asked for, and a question to a name server can carry data out. Rules by address
        alone close no names, nor do rules by name beside one for any, public or private (or
        0.0.0.0/0, ::/0), as every name may lead there. `localhost` is the guest's own.
        `verify` of the decision: of any rule about the name.
        """
        wanted = normal_name(name)
        for entry in self._final:
            if entry.name and entry.rule.every_port and entry.rule.named((wanted,)) is not None:
                return _unresolved(entry, wanted)
        about = tuple(self._index.about_name(wanted))
        for entry in about:
            if not entry.holds(subject.labels):
                continue
            if entry.allow:
                verify = next((e.terms.verify for e in about if e.terms.verify), None)
                source = entry.terms.source
                return Decision(
                    True,
                    entry.rule.text,
                    name=wanted,
                    verify=verify,
                    via=entry.terms.via,
                    source=source,
                )
            if entry.rule.every_port and not entry.terms.programs:
                return _unresolved(entry, wanted)
        if wanted == "localhost" or wanted.endswith(".localhost"):
            return Decision(True, "default: the guest's own name")
        if not self._names_closed:
            return Decision(True, "default: names resolve")
        text = name_literal(wanted)
        return Decision(
            False,
            f"default: name not in {self.title or '--allow'}",
            hint=f"--allow {text}" if text else "",
        )

    def answer(self, name: str, address: IPAddress, subject: Subject = NOBODY) -> Decision:
        """May the guest learn this address for a name that `resolve` allowed by a rule (see `rebinding`)?

        A name that was allowed by default may have any: connections are decided by address then.
        """
        if self._labelled:
            return self.for_labels(subject.labels).answer(name, address)
        wanted = normal_name(name)
        vias = [e.terms.via for e in self._index.about_name(wanted) if e.allow]
        # Where this process is, its own network or the guest's interface: nobody's word opens that.
        away = bool(vias) and all(via and not set(RESERVED) & set(via) for via in vias)
        return rebinding.judge(self._opening, wanted, address, away)


def options(
    allow: Sequence[str], deny: Sequence[str], groups: Mapping[str, Sequence[str]] | None = None
) -> tuple[list[tuple[Rule, Terms]], UnixRules]:
    """What --allow and --deny say. Raises RuleError."""
    rules: list[tuple[Rule, Terms]] = []
    for texts, terms in ((allow, Terms(True)), (deny, Terms(False, final=True))):
        for text in texts:
            if not is_unix(text):
                rules += [(rule, terms) for rule in parse_rules(text, groups or {})]
    unix = UnixRules(*(map(parse_unix, filter(is_unix, texts)) for texts in (allow, deny)))
    return rules, unix


def _word(entry: Entry) -> str:
    return "allow" if entry.allow else "deny"


def whole(entry: Entry, version: int) -> bool:
    """Whether a rule is about every address of a version of IP."""
    return entry.addresses is not None and entry.addresses.whole(version)


def _set(rule: Rule) -> AddressSet:
    assert rule.addresses is not None  # callers hold a rule by address
    return rule.addresses


def rank_at(rule: Rule, host: IPAddress) -> int:
    """How specific a rule by address is about one of its addresses."""
    return max(
        (
            network_rank(network)
            for network in rule.networks
            if network.version == host.version and host in network
        ),
        default=0,
    )


def _deny_of(found: Found | None) -> Found | None:
    return found if found is not None and not found[1].allow else None


def _unresolved(entry: Entry, name: str) -> Decision:
    terms, text = entry.terms, entry.rule.text
    hint = f"change the rule at {terms.source}" if terms.source else f"remove --deny {text}"
    return Decision(False, text, 0, name, True, hint, source=terms.source)


def _suffix(protocol: Protocol) -> str:
    return "" if protocol == Protocol.TCP else f"/{protocol}"


def literal(host: IPAddress) -> str:
    return f"[{host}]" if host.version == 6 else str(host)


def name_literal(name: str, rest: str = "") -> str | None:
    """The rule text for a name; it came from the guest and may be unfit for one."""
    for text in (f"{name}{rest}", f"{name}.{rest}"):
        try:
            rule = parse_rule(text)
        except RuleError:
            continue
        if rule.name == name and not name.startswith("*") and rule.direction == "connect":
            return text
    return None


def connect_hint(protocol: Protocol, host: IPAddress, port: int, names: Sequence[str]) -> str:
    rest = _suffix(protocol) if protocol == Protocol.ICMP else f":{port}{_suffix(protocol)}"
    if host in GROUPS["loopback"]:
        return f"--allow loopback{rest}"
    for name in names:
        text = name_literal(name, rest)
        if text:
            return f"--allow {text}"
    return f"--allow {literal(host)}{rest}"
