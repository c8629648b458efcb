"""One rule: its text, its meaning, and what is wrong with it.

    [connect:|listen:|accept:]HOST|CIDR|GROUP[:PORT[-PORT]][/tcp|udp|icmp]

    web.test:443            connect to web.test, by the addresses it resolved to
    *.web.test              any name below web.test, at any depth, but not web.test itself
    203.0.113.0/24:80-90    a network and a range of ports
    [2001:db8::1]:53/udp    IPv6 stands in brackets when a port follows
    loopback:5432           a group; this one is the host's loopback (so is `localhost`)
    listen:any:8080         listen on any local address
    accept:10.0.0.0/8:8080  clients of this network may connect to the guest's port 8080
    web.test/icmp           ping web.test; a rule with ports is not about ICMP

Rules
- A name that is also a group is written with its trailing dot: `public.`.
- A policy file may name groups of its own; a rule about one of these is one rule for each of its members.
- In a listen rule 0.0.0.0 stands for all of IPv4, and [::], as a socket on it takes both, for any.
- What cannot be understood, or could be understood in two ways, is an error with a hint.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, ip_address, ip_network
from typing import TYPE_CHECKING, Literal, NoReturn

from xensock.calls.call import Protocol
from xensock.policy.groups import (
    GROUP_NETWORKS,
    GROUPS,
    PROTECTED,
    AddressSet,
    IPNetwork,
    unmapped,
)
from xensock.policy.names import normal_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xensock.calls.address import IPAddress

Direction = Literal["connect", "listen", "accept"]
DIRECTIONS: tuple[Direction, ...] = ("connect", "listen", "accept")

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_PROTOCOLS = tuple(Protocol)
_NO_GROUPS: Mapping[str, Sequence[str]] = {}


class RuleError(ValueError):
    """A rule that cannot be understood: what is wrong (`message`), what to write (`hint`)."""

    def __init__(self, message: str, hint: str, at: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.at = at


@dataclass(frozen=True, slots=True)
class Rule:
    """A parsed rule. Exactly one of `addresses` and `name` says which hosts it is about. `networks`
    are those of which `addresses` consists, but for what a group leaves out."""

    text: str
    direction: Direction
    addresses: AddressSet | None = None
    networks: tuple[IPNetwork, ...] = ()
    group: str = ""
    exact: bool = False
    opens: frozenset[str] = frozenset()
    name: str = ""
    low: int = 0
    high: int = 65535
    protocol: Protocol | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def every_port(self) -> bool:
        """Whether it is about the host as a whole: all its ports, all protocols."""
        return self.protocol is None and self.low == 0 and self.high == 65535

    def takes(self, protocol: Protocol, port: int) -> bool:
        """Whether it is about this port. To listen on port 0 asks for some free port, which is
        always one of 1024-65535 unless the host's administrator said otherwise."""
        if self.protocol is not None and self.protocol != protocol:
            return False
        if port == 0 and self.direction == "listen" and self.low <= 1024 and self.high == 65535:
            return True
        return self.low <= port <= self.high

    def named(self, names: Iterable[str]) -> str | None:
        """The first of these (normal) names that it is about, if it is a rule by name."""
        if self.name.startswith("*"):
            return next((name for name in names if name.endswith(self.name[1:])), None)
        return next((name for name in names if name == self.name), None)


def parse_rule(text: str) -> Rule:
    """Read a rule as typed by a person. Raises RuleError."""
    return _Reader(text.strip()).read()[0]


def parse_rules(text: str, groups: Mapping[str, Sequence[str]] = _NO_GROUPS) -> tuple[Rule, ...]:
    """Read a rule that may be about one of `groups`, which has names, addresses, networks and
    groups as members: one rule for each member. Raises RuleError."""
    return _Reader(text.strip(), groups).read()


def check_group(name: str, members: Sequence[str], groups: Mapping[str, Sequence[str]]) -> None:
    """Raises RuleError where a group of a policy file cannot be used, by its name alone or by
    one of its members (then `RuleError.at` is the member's place)."""
    if not re.fullmatch(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?", name) or name.isdigit():
        raise RuleError(
            f"group {name}: not a name for a group", "write lower-case letters, digits, '-', '_'"
        )
    if name in (*GROUPS, "localhost", *DIRECTIONS, *_PROTOCOLS):
        raise RuleError(f"group {name}: the word has a meaning already", f"call it my-{name}")
    for at, member in enumerate(members):
        try:
            _Reader(member.strip(), groups).members(name)
        except RuleError as error:
            raise RuleError(f"group {name}: {error.message}", error.hint, at) from None


class _Reader:
    """Takes a rule apart from its ends: direction, protocol, ports; what is left is the host."""

    def __init__(self, whole: str, groups: Mapping[str, Sequence[str]] = _NO_GROUPS) -> None:
        self.whole = whole
        self.groups = groups
        self.direction: Direction = "connect"
        self.before = ""  # the direction as written,
        self.after = ""  # and the protocol: hints repeat them

    def fail(self, message: str, hint: str) -> NoReturn:
        raise RuleError(f"rule {self.whole!r}: {message}" if self.whole else message, hint)

    def spell(self, middle: str) -> str:
        return f"{self.before}{middle}{self.after}"

    def read(self) -> tuple[Rule, ...]:
        if not self.whole:
            self.fail("the rule is empty", "write a host, network or group, e.g. web.test:443")
        if any(char.isspace() or not char.isprintable() for char in self.whole):
            self.whole = ascii(self.whole)
            self.fail("a rule has no white space", "give one rule per option")
        if "://" in self.whole:
            self.fail("a rule is not a URL", _url_hint(self.whole))
        host, ports = self.split(self.protocol_of(self.direction_of(self.whole)))
        if host in ("", "*"):
            right = self.spell(f"any:{ports}" if ports else "any")
            self.fail("the host is missing", f"for every host write {right}")
        low, high = self.ports_of(host, ports)
        protocol = Protocol(self.after[1:].lower()) if self.after else None
        if protocol == Protocol.ICMP:
            self.no_ports(host, ports)
        if self.direction == "accept" and protocol not in (None, Protocol.TCP):
            self.fail("only TCP accepts connections", "leave the protocol out")
        rule = Rule(self.whole, self.direction, low=low, high=high, protocol=protocol)
        return self.hosts_of(rule, host)

    def hosts_of(self, rule: Rule, host: str, within: tuple[str, ...] = ()) -> tuple[Rule, ...]:
        """The rule for each member of a group of the policy's own, else for the one host."""
        name = host.lower()
        if name not in self.groups:
            return (self.host_of(rule, host),)
        if name in within:
            self.fail(f"the group {name} is a member of itself", "leave one of the two out")
        found: list[Rule] = []
        for member in self.groups[name]:
            found += self.hosts_of(rule, _bare(member), (*within, name))
        return tuple(found)

    def members(self, group: str) -> tuple[Rule, ...]:
        """What one member of `group` is about. Raises RuleError."""
        if not self.whole or any(c.isspace() or not c.isprintable() for c in self.whole):
            self.fail("a member is a host, a network or a group", "write one per string")
        if _network(_bare(self.whole)) is None and ":" in self.whole:
            self.fail(
                f"{self.whole!r} is not a host, a network or a group",
                "ports and protocols stand in the rules that name the group",
            )
        return self.hosts_of(Rule(self.whole, "connect"), _bare(self.whole), (group,))

    def direction_of(self, text: str) -> str:
        head, colon, tail = text.partition(":")
        for direction in DIRECTIONS:
            if colon and head.lower() == direction:
                self.direction = direction
                self.before = f"{head}:"
                return tail
        return text

    def protocol_of(self, text: str) -> str:
        head, slash, tail = text.rpartition("/")
        if not slash or not tail[:1].isalpha():
            return text
        if tail.lower() not in _PROTOCOLS:
            self.fail(f"unknown protocol {tail!r}", "write /tcp, /udp or /icmp, or nothing for all")
        self.after = f"/{tail}"
        return head

    def split(self, text: str) -> tuple[str, str | None]:
        """Host and ports apart; here brackets and the colons of IPv6 are understood."""
        if text.startswith("["):
            inside, bracket, rest = text[1:].partition("]")
            match = re.fullmatch(r"(/[0-9]+)?(?::(.*))?", rest)
            if not bracket or match is None:
                self.fail("the brackets are wrong", f"write {self.spell('[2001:db8::1]:443')}")
            if ":" not in inside:
                self.fail("only IPv6 stands in brackets", f"write {self.spell(inside + rest)}")
            return inside + (match[1] or ""), match[2]
        if text.count(":") < 2:
            host, colon, ports = text.partition(":")
            return host, ports if colon else None
        if "%" in text:
            self.no_interface(text)
        host, _, ports = text.rpartition(":")
        port_follows = _network(host) is not None and _PORTS.fullmatch(ports) is not None
        bracketed = self.spell(f"[{host}]:{ports}")
        if _network(text) is not None:
            if port_follows:
                self.fail(
                    f"is {ports} a port, or the end of the address?",
                    f"write {bracketed} for the port, {self.spell(f'[{text}]')} for the address",
                )
            return text, None
        if port_follows:
            self.fail("brackets are missing", f"write {bracketed}")
        first, _, others = text.partition(":")
        if first.lower() in _PROTOCOLS:
            self.fail("the protocol stands at the end", f"write {self.before}{others}/{first}")
        close = near(first, DIRECTIONS)
        if close and not self.before:
            self.fail(f"unknown direction {first!r}", f"did you mean {close}:{others}{self.after}?")
        low, _, high = others.partition(":")
        if len(first) > 4 and low.isdecimal() and high.isdecimal():
            self.fail("two ports follow the host", f"write {self.spell(f'{first}:{low}-{high}')}")
        self.fail(
            f"{text!r} is not an IPv6 address", "write it like 2001:db8::1 or [2001:db8::1]:443"
        )

    def ports_of(self, host: str, ports: str | None) -> tuple[int, int]:
        if ports is None:
            return 0, 65535
        match = _PORTS.fullmatch(ports)
        if match is None:
            self.fail(f"{ports!r} is not a port", self.port_hint(host, ports))
        low, high = int(match[1]), int(match[2] or match[1])
        if max(low, high) > 65535:
            self.fail(f"there is no port {max(low, high)}", "ports are 0-65535")
        if high < low:
            right = self.spell(f"{_bracketed(host)}:{high}-{low}")
            self.fail("the range of ports ends before it starts", f"write {right}")
        return low, high

    def no_ports(self, host: str, ports: str | None) -> None:
        if ports is not None:
            right = f"{self.before}{_bracketed(host)}{self.after}"
            self.fail("ICMP has no ports", f"write {right}")
        if self.direction == "listen":
            self.fail("ICMP has no listeners", "leave the rule out: a guest answers no pings")

    def port_hint(self, host: str, ports: str) -> str:
        if ports in ("", "*"):
            return f"for every port write {self.spell(host)}"
        close = near(host, DIRECTIONS)
        if close and not self.before:
            return f"did you mean {close}:{ports}{self.after}?"
        if "," in ports:
            return "give one rule per port, or a range such as 80-90"
        import socket

        try:
            number = socket.getservbyname(ports)
        except OSError:
            return "write a number such as 443, or a range such as 80-90"
        return f"write {self.spell(f'{_bracketed(host)}:{number}')}"

    def host_of(self, rule: Rule, host: str) -> Rule:
        group = "loopback" if host.lower() == "localhost" else host.lower()
        if group in GROUPS:
            opens = frozenset((group,)) & frozenset(PROTECTED)
            return replace(
                rule,
                addresses=GROUPS[group],
                networks=GROUP_NETWORKS[group],
                group=group,
                opens=opens,
            )
        if "%" in host:
            self.no_interface(host)
        network = _network(host)
        if network is None:
            name = self.name_of(host)
            if rule.direction == "listen":
                self.fail(
                    "listening is allowed by address, not by name",
                    "write any, another group or a local address, e.g. listen:any:8080",
                )
            if rule.direction == "accept":
                self.fail(
                    "clients are known by address, not by name",
                    "write any, another group or a network, e.g. accept:10.0.0.0/8:8080",
                )
            return replace(rule, name=name)
        exact = network.prefixlen == network.max_prefixlen
        if exact and int(network.network_address) == 0:
            return self.unspecified(rule, network)
        if "/" in host:
            address = unmapped(ip_address(host.partition("/")[0]))
            if address != network.network_address:
                self.fail(
                    f"{address} is an address inside the network",
                    f"for the network write {network}, for the address {address}",
                )
        addresses = AddressSet((network,))
        opens = frozenset(group for group in PROTECTED if addresses.inside(GROUPS[group]))
        return replace(rule, addresses=addresses, networks=(network,), exact=exact, opens=opens)

    def no_interface(self, host: str) -> NoReturn:
        self.fail("a rule names no interface", f"leave out {host[host.index('%') :]}")

    def unspecified(self, rule: Rule, network: IPNetwork) -> Rule:
        if rule.direction == "connect":
            self.fail(
                f"{network.network_address} is no destination",
                "write loopback for the host's loopback, any for every address",
            )
        if rule.direction == "accept":
            self.fail(f"{network.network_address} is no client", "write any for every client")
        every = GROUP_NETWORKS["any"]
        if network.version == 6:
            return replace(rule, addresses=GROUPS["any"], networks=every, group="any")
        return replace(rule, addresses=AddressSet(every[:1]), networks=every[:1])

    def name_of(self, host: str) -> str:
        """A host name, with `*.` before it or not, in its normal form."""
        if "/" in host:
            address, _, length = host.partition("/")
            if _network(address) is not None:
                self.fail(
                    f"{length!r} is not the length of a prefix",
                    "write a network like 10.0.0.0/8 or 2001:db8::/32",
                )
            port = self.spell(f"{address}:{length}")
            self.fail(f"{address!r} is not an address", f"for a port write {port}")
        name = normal_name(host)
        labels = name.removeprefix("*.").split(".")
        if labels[-1].isdigit():
            hint = "write four numbers of 0-255"
            if len(labels) == 1:
                hint = f"for a port of every host write {self.spell(f'any:{name}')}"
            self.fail(f"{host!r} is not an IPv4 address", hint)
        if not name.isascii():
            self.fail("names travel through DNS in ASCII", _idn_hint(name))
        if "*" in name.removeprefix("*."):
            self.fail("'*' stands only for the first labels", "write it like *.web.test")
        if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
            self.fail(
                f"{host!r} is not a host name",
                "a name has letters, digits, '-' and '_' between its dots",
            )
        if host == labels[0] or host.lower() == labels[0]:
            close = near(name, (*GROUPS, "localhost", *self.groups))
            if close:
                self.fail(
                    f"no group is called {name!r}",
                    f"did you mean {close}? A host of that name is written {name}.",
                )
        return name


def _network(text: str) -> IPNetwork | None:
    """The network, or the address as a network of one; None if it is neither."""
    if "%" in text or not re.fullmatch(r"[^/]+(/[0-9]{1,3})?", text):
        return None
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return None
    if network.version == 6 and network.prefixlen >= 96:
        inner: IPAddress = unmapped(network.network_address)
        if inner.version == 4:
            return IPv4Network((int(inner), network.prefixlen - 96))
    return network


def _bare(host: str) -> str:
    """A host without the brackets of IPv6."""
    host = host.strip()
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _idn_hint(name: str) -> str:
    try:
        return f"write {name.encode('idna').decode()}"
    except UnicodeError:
        return "write the name as DNS has it, beginning with xn--"


def _url_hint(whole: str) -> str:
    from urllib.parse import urlsplit

    try:
        url = urlsplit(whole)
        port = url.port or {"http": 80, "https": 443, "ssh": 22, "git": 9418}.get(url.scheme)
    except ValueError:
        return "write only HOST:PORT"
    if not url.hostname:
        return "write only HOST:PORT"
    host = _bracketed(url.hostname)
    return f"write {host}:{port}" if port else f"write {host}"


def near(word: str, words: Iterable[str]) -> str | None:
    """The one of `words` that a person may have meant by `word`."""
    from difflib import get_close_matches

    found = get_close_matches(word.lower(), list(words), n=1, cutoff=0.72)
    return found[0] if found else None
