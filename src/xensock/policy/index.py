"""Rules by where they lead: the best one for an address or a name is found without looking at the others.

Theory of operation: networks form a tree; every address lies in one innermost node, which a bisection over sorted
boundaries finds, and the way up from there meets all networks that hold it, the longest first. Names are looked up as
they are and by their ends. What a node holds is sorted, so that the first rule that takes a call is the best there.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from xensock.calls.call import Protocol
from xensock.policy.entries import ONE_HOST, network_rank, wild_rank
from xensock.policy.groups import GROUP_NETWORKS, PROTECTED, IPNetwork

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from xensock.calls.address import IPAddress
    from xensock.policy.entries import Entry

Found = tuple[int, "Entry"]  # how specific its host is, and the rule
DENIES, ALLOWS, SPECIAL = 1, 2, 4
_FEW = 4
_REMEMBERED = 1024


class Bucket:
    """Rules about the same hosts, the best first. `rank`: how specific these are."""

    __slots__ = ("_known", "entries", "rank")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.entries: tuple[Entry, ...] = ()
        self._known: dict[tuple[Protocol, int], tuple[Entry, ...]] = {}

    def fill(self, entries: Iterable[Entry]) -> None:
        """Take these rules."""
        self.entries = tuple(sorted(entries, key=lambda entry: entry.key, reverse=True))

    def about(self, protocol: Protocol, port: int) -> tuple[Entry, ...]:
        """The rules about this port, of many."""
        key = (protocol, port)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[key] = tuple(
                entry
                for entry in self.entries
                if entry.low <= port <= entry.high and entry.protocol in (None, protocol)
            )
        return found


class Node(Bucket):
    """A network that rules are about, or that is protected. `protected`: the group that addresses are in whose
    innermost node this is."""

    __slots__ = ("end", "parent", "protected", "start")

    def __init__(self, network: IPNetwork) -> None:
        super().__init__(network_rank(network))
        self.start, self.end = int(network.network_address), int(network.broadcast_address)
        self.parent: Node | None = None
        self.protected: str | None = None


class _Tree:
    """The networks of one version of IP."""

    def __init__(self, nodes: dict[IPNetwork, Node], whole: IPNetwork) -> None:
        root = nodes.setdefault(whole, Node(whole))
        self._starts, self._owners = [root.start], [root]
        guarded = {
            nodes[network]: group
            for group in reversed(PROTECTED)
            for network in GROUP_NETWORKS[group]
            if network in nodes
        }
        order = {group: at for at, group in enumerate(PROTECTED)}
        stack: list[Node] = []
        for node in sorted(nodes.values(), key=lambda each: (each.start, -each.end)):
            while stack and stack[-1].end < node.start:
                self._leave(stack)
            node.parent = stack[-1] if stack else None
            groups = [guarded.get(node), node.parent.protected if node.parent else None]
            node.protected = min(filter(None, groups), key=order.__getitem__, default=None)
            self._own(node.start, node)
            stack.append(node)
        while len(stack) > 1:
            self._leave(stack)
        for node in nodes.values():
            while node.parent is not None and not node.parent.entries:
                node.parent = node.parent.parent  # nothing is found there

    def _leave(self, stack: list[Node]) -> None:
        done = stack.pop()
        if done.end < stack[-1].end:
            self._own(done.end + 1, stack[-1])

    def _own(self, start: int, node: Node) -> None:
        if self._starts[-1] == start:
            self._owners[-1] = node
        else:
            self._starts.append(start)
            self._owners.append(node)

    def node(self, number: int) -> Node:
        return self._owners[bisect_right(self._starts, number) - 1]


class Index:
    """The rules of one direction."""

    def __init__(self, entries: Iterable[Entry], *, guarded: bool = True) -> None:
        self.entries = tuple(entries)
        self.exact: dict[str, Bucket] = {}
        self._wild: dict[str, Bucket] = {}
        nodes: dict[int, dict[IPNetwork, Node]] = {4: {}, 6: {}}
        if guarded:
            for group in PROTECTED:
                for network in GROUP_NETWORKS[group]:
                    nodes[network.version].setdefault(network, Node(network))
        many: dict[Bucket, list[Entry]] = {}
        for entry in self.entries:
            buckets: list[Bucket] = []
            if entry.name.startswith("*"):
                end = entry.name[1:]
                buckets.append(self._wild.setdefault(end, Bucket(wild_rank(end))))
            elif entry.name:
                buckets.append(self.exact.setdefault(entry.name, Bucket(ONE_HOST)))
            for network in entry.rule.networks:
                of_version = nodes[network.version]
                if network not in of_version:
                    of_version[network] = Node(network)
                buckets.append(of_version[network])
            for bucket in buckets:
                many.setdefault(bucket, []).append(entry)
        for bucket, entries in many.items():
            bucket.fill(entries)
        four, six = GROUP_NETWORKS["any"]
        self._four, self._six = _Tree(nodes[4], four), _Tree(nodes[6], six)
        self.by_name = bool(self.exact or self._wild)

    def node(self, host: IPAddress) -> Node:
        """The innermost node of an address."""
        return (self._four if host.version == 4 else self._six).node(int(host))

    def of_node(
        self, start: Node, forms: Sequence[IPAddress], protocol: Protocol, port: int, program: str
    ) -> Found | None:
        """The best rule by address; `forms` as of `groups.destination_forms`."""
        node: Node | None = start
        plain = len(forms) == 1
        while node is not None:
            entries = node.entries
            if len(entries) > _FEW:
                entries = node.about(protocol, port)
            for entry in entries:
                if not entry.low <= port <= entry.high:
                    continue
                if entry.protocol is not None and entry.protocol != protocol:
                    continue
                if entry.program is not None and entry.program.fullmatch(program) is None:
                    continue
                if entry.holes and forms[0] not in entry.addresses:  # type: ignore[operator]
                    continue
                if (
                    not entry.allow
                    or entry.exact
                    or (plain and start.protected is None)
                    or opens(entry, forms, start.protected)
                ):
                    return node.rank, entry
            node = node.parent
        return None

    def of_names(
        self, names: Iterable[str], protocol: Protocol, port: int, program: str, closed: bool
    ) -> tuple[Found, str] | None:
        """The best rule by one of these names, and that name. `closed`: no name opens the address."""
        best: tuple[Found, str] | None = None
        for name in names:
            found = self._of_name(name, protocol, port, program, closed)
            if found and (best is None or better(found, best[0])):
                best = found, name
        return best

    def _of_name(
        self, name: str, protocol: Protocol, port: int, program: str, closed: bool
    ) -> Found | None:
        bucket, at = self.exact.get(name), -1
        while True:
            if bucket is not None:
                entries = bucket.entries
                if len(entries) > _FEW:
                    entries = bucket.about(protocol, port)
                for entry in entries:
                    if entry.takes(protocol, port, program) and not (closed and entry.allow):
                        return bucket.rank, entry
            at = name.find(".", at + 1) if self._wild else -1
            if at < 0:
                return None
            bucket = self._wild.get(name[at:])

    def matching(
        self,
        forms: Sequence[IPAddress],
        names: Iterable[str],
        protocol: Protocol,
        port: int,
        program: str,
    ) -> list[Found]:
        """All rules that decide about a call or could, the best first."""
        found: list[Found] = []
        closed = False
        for form in forms:
            start = self.node(form)
            closed = closed or start.protected is not None
            node: Node | None = start
            while node is not None:
                found += [
                    (node.rank, entry)
                    for entry in node.about(protocol, port)
                    if form in entry.addresses  # type: ignore[operator]
                    and (
                        not entry.allow
                        or (form is forms[0] and opens(entry, forms, start.protected))
                    )
                ]
                node = node.parent
        for name in names:
            found += [
                (wild_rank(entry.name[1:]) if entry.name.startswith("*") else ONE_HOST, entry)
                for entry in self.about_name(name)
                if not (closed and entry.allow)
            ]
        kept = {entry: rank for rank, entry in found if entry.takes(protocol, port, program)}
        ordered = [(rank, entry) for entry, rank in kept.items()]
        return sorted(ordered, key=lambda each: (each[0], each[1].key), reverse=True)

    def about_name(self, name: str) -> Iterator[Entry]:
        """The rules about a name, the most specific first."""
        ends = [name[at:] for at, char in enumerate(name) if char == "."] if self._wild else []
        for bucket in (self.exact.get(name), *map(self._wild.get, ends)):
            if bucket is not None:
                yield from bucket.entries


class Doubts:
    """What rules that depend on more than address and port (names, programs) could say about a port."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        found = [entry for entry in entries if entry.conditional]
        self._tables = {protocol: _table(found, protocol) for protocol in Protocol}

    def of(self, protocol: Protocol, port: int) -> int:
        """Bits of DENIES, ALLOWS, SPECIAL (allows, but not as it is)."""
        starts, bits = self._tables[protocol]
        return bits[bisect_right(starts, port) - 1]


def _table(entries: Iterable[Entry], protocol: Protocol) -> tuple[list[int], list[int]]:
    changes: dict[int, list[int]] = {0: [0, 0, 0]}
    for entry in entries:
        if entry.protocol not in (None, protocol):
            continue
        kind = 0 if not entry.allow else 1 if entry.plain else 2
        changes.setdefault(entry.low, [0, 0, 0])[kind] += 1
        changes.setdefault(entry.high + 1, [0, 0, 0])[kind] -= 1
    starts, bits, counts = [], [], [0, 0, 0]
    for start in sorted(changes):
        counts = [count + change for count, change in zip(counts, changes[start], strict=True)]
        starts.append(start)
        bits.append(sum(1 << kind for kind, count in enumerate(counts) if count))
    return starts, bits


def better(one: Found, other: Found) -> bool:
    """Whether one rule goes before the other."""
    return (one[0], one[1].key) > (other[0], other[1].key)


def opens(entry: Entry, forms: Sequence[IPAddress], protected: str | None) -> bool:
    """Whether an allow rule by address, in whose network an address is, opens it. A group must hold every form of
    the address; the protected ranges open to a rule that names them."""
    rule = entry.rule
    if rule.exact:
        return True
    if protected is not None and protected not in rule.opens:
        return False
    if len(forms) == 1:
        return True
    from xensock.policy.groups import protected_group

    if rule.group and not all(form in rule.addresses for form in forms):  # type: ignore[operator]
        return False
    return all(group is None or group in rule.opens for group in map(protected_group, forms[1:]))
