"""UDP and ICMP echo of one guest: who may send where, and the host's sockets that send and receive for it.

Theory of operation
- The guest's sockets stay its own. What they send to the outside leaves the guest's network by its card, whose far
  end is a packet socket of ours; the C core (native/core/udp.c) reads it, and asks here once per flow.
- A port number of the guest's has one socket of the host's, bound to the same number where that is free. A program that
  binds gets it before bind(2) returns; one that only sends gets it with its first datagram.
- When the guest's last socket of a port is gone, which the kernel tells by sock_diag(7), so is the host's.

See docs/explanation/udp.md.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import Endpoint, packed, unpacked
from xensock.calls.call import Decision, Protocol, Verb
from xensock.loop import IN, Loop
from xensock.policy.deferred import final
from xensock.policy.networks import AWAY
from xensock.stack.stacks import Look
from xensock.supervisor import echoing, rtnetlink, udp_diag
from xensock.supervisor.afar import Afar
from xensock.supervisor.datagram_records import name_of, path_of, target
from xensock.supervisor.groups import Groups
from xensock.supervisor.hostways import way
from xensock.supervisor.rtnetlink import GUEST4, GUEST6
from xensock.supervisor.udp_card import BUFFER, open_card

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from xensock.calls.record import Path
    from xensock.policy.point import Point
    from xensock.stack.stacks import Stack, Stacks
    from xensock.supervisor.guest import Guest
    from xensock.supervisor.publication import Publication

    Judged = tuple[Decision, int, Stack]

UDP, ECHO, DGRAM = 17, 1, socket.SOCK_DGRAM
ASK, INBOUND = 0, 1
SIX, DUAL, OPEN, AUTOMATIC, RAW, FRAMED = 1, 2, 4, 8, 16, 32  # native/core/udp.h
INFORMED, VIA = 64, 8
IP_RECVERR, IPV6_RECVERR = 11, 25
ECHOES = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}
BROADCAST, ANY4, ANY6 = IPv4Address(0xFFFFFFFF), IPv4Address(0), IPv6Address(0)
MOST_CALLERS = 4096
PORT = "udp"  # in names of what is kept for a successor
LAST_VIA = 255  # before the numbers of networks that are long gone come again
DESCRIPTORS = 8192
LAST_WORDS_S = 0.5


@dataclass(slots=True)
class Bound:
    """A port that a program has bound. `cookies` of the guest's sockets that share it."""

    outer: socket.socket
    decision: Decision
    via: int
    cookies: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Who:
    """A process that made a call."""

    pid: int = 0
    program: str = "?"


class Datagrams:
    """The datagrams of one guest. Methods may be called from any thread. Raises OSError where the kernel lacks policy
    routing or packet sockets."""

    def __init__(
        self,
        guest: Guest,
        point: Point,
        stacks: Stacks,
        publications: Sequence[Publication] = (),
    ) -> None:
        self.point = point
        self.publications = tuple(publications)
        self._guest = guest
        self._stacks = stacks
        self._lock = threading.RLock()
        self.bound: dict[tuple[bytes, int], Bound] = {}
        self._cookies: dict[int, tuple[bytes, int, bool]] = {}  # address, port, automatic
        self._names: dict[int, str] = {}  # under which they are kept for a successor
        self._callers: dict[tuple[int, bytes, int], Who] = {}
        self.groups = Groups(
            self._outer, lambda family: self.home.make(family, DGRAM, 0), guest.keep, guest.drop
        )
        self._vias: dict[str, tuple[int, Stack]] = {}  # networks by their number for the core
        self._via = 0  # the last number
        self._nameless: set[str] = set()  # of those, who refuse the guest's port numbers
        _make_room()
        ways = [way(socket.AF_INET, GUEST4)]
        self.source = ways[0].source  # of what is sent by IPv4
        if rtnetlink.host_has_ipv6():
            ways.append(way(socket.AF_INET6, None))
        with guest.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
            if "card" not in guest.left:
                rtnetlink.let_datagrams_out(link, ways)
            mac = rtnetlink.hardware_address(link, rtnetlink.CARD)
        card = guest.kept("card", lambda: open_card(guest))
        # The kernel waits for all its readers when the last reference to a packet socket goes (packet_release).
        self._kept = os.dup(card.fileno())
        plain = b"".join(packed(each.source) for each in ways if each.source) + packed(GUEST4)
        self._core = _core.udp_open(
            card.detach(), mac, plain + packed(GUEST6), point.record is not None
        )
        self._diag: socket.socket | None = None
        self._loop = Loop("xs-udp")
        self.afar = Afar()
        with suppress(OSError):  # no UDP in sock_diag: ports are closed when they are idle
            self._diag = udp_diag.watch(guest)
            self._loop.add(self._diag.fileno(), IN, lambda _: self._read_diag())
        self._loop.add(_core.udp_fd(self._core), IN, lambda _: self._read_events())

    def close(self) -> None:
        """End the threads and close every socket but the card, which takes milliseconds: `release`, or the end of
        this process. What was sent is passed on first, as far as other backends say soon whether it may."""
        self.afar.settle(LAST_WORDS_S)
        self._loop.stop()
        self.afar.close()
        _core.udp_close(self._core)
        if self._diag is not None:
            self._diag.close()
        for held in self.bound.values():
            held.outer.close()

    def release(self) -> None:
        """Close the card too."""
        os.close(self._kept)

    def doubt(self) -> None:
        """The policy has changed: whatever was decided is decided again, at the next datagram."""
        _core.udp_doubt(self._core)
        with self._lock:
            for (address, number), held in list(self.bound.items()):
                where = Endpoint(unpacked(address), number)
                if held.decision.allowed and self.published(number) is None:
                    held.decision = self.may_bind(where)
            self.judge_groups()

    def judge_groups(self) -> None:
        """Leave the groups that no rule allows."""
        self.groups.judge(lambda group, port: self.point.join(group, port).allowed)

    def count(self) -> tuple[int, int]:
        """How many flows and ports there are."""
        return _core.udp_count(self._core)

    # --- ports that programs bind

    def published(self, number: int) -> Publication | None:
        """What shows a port of the guest's outside."""
        return next((p for p in self.publications if p.guest_port == number), None)

    def may_bind(self, local: Endpoint, only: bool = False, pid: int = 0) -> Decision:
        """Whether the guest may have this (unmapped) address and port outside. `only`: IPV6_V6ONLY."""
        if local.host.is_multicast:
            return self.point.join(local.host, local.port, pid)
        return self.point.listen(Protocol.UDP, local, only, pid)

    def _outer(self, cookie: int) -> socket.socket | None:
        address, number, automatic = self._cookies.get(cookie, (b"", 0, True))
        held = None if automatic else self.bound.get((address, number))
        return held.outer if held is not None else None

    def holds(self, local: Endpoint) -> bool:
        """Whether the guest has this very address and port outside already."""
        return (packed(local.host), local.port) in self.bound

    def hold(self, local: Endpoint, outer: socket.socket, decision: Decision) -> None:
        """The host's socket for a port that the guest is about to bind. Raises OSError; takes `outer` over."""
        key = (packed(local.host), local.port)
        via = self.via(self.home)
        six = outer.family == socket.AF_INET6
        flags = (SIX if six else 0) | _carried(self.home, via)
        if six and not outer.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            flags |= DUAL
        if decision.allowed:
            flags |= OPEN
        with self._lock:
            try:
                # An automatic one of an earlier socket of the guest's with this number.
                _core.udp_unport(self._core, UDP, *key, via, True)
                _core.udp_port(self._core, UDP, *key, os.dup(outer.fileno()), flags, 0)
            except OSError:
                outer.close()
                raise
            self.bound[key] = Bound(outer, decision, via)

    def bind_beside(
        self, local: Endpoint, bind: Callable[[], None], cookie: int, inode: int
    ) -> Decision | None:
        """Bind one more socket of the guest's there, where a living one is, and `share`; None: there is none. Raises
        OSError."""
        if not self.holds(local):
            return None
        self.release_gone()
        with self._lock:
            if not self.holds(local):
                return None
            bind()
            return self.share(local, cookie, inode)

    def share(self, local: Endpoint, cookie: int, inode: int) -> Decision:
        """A socket of the guest's is bound there; what was decided about the first. Raises OSError: a group that it
        joined cannot be joined."""
        key = (packed(local.host), local.port)
        with self._lock:
            held = self.bound[key]
            held.cookies.add(cookie)
            self._cookies[cookie] = (*key, False)
            self._names[cookie] = f"{PORT}.{key[0].hex()}.{local.port}.{cookie}.{inode}"
            if self._guest.keep is not None:
                self._guest.keep(self._names[cookie], held.outer.fileno())
            self.groups.bound(cookie, held.outer)
            return held.decision

    def drop(self, local: Endpoint) -> None:
        """Nobody is bound there after all."""
        self._release((packed(local.host), local.port))

    def _release(self, key: tuple[bytes, int]) -> None:
        held = self.bound.pop(key, None)
        if held is not None:
            for cookie in held.cookies:
                self._guest.drop(self._names.pop(cookie, ""))
            _core.udp_unport(self._core, UDP, *key, held.via)
            self.groups.closing(held.outer)
            held.outer.close()

    # --- who calls

    def remember(self, local: Endpoint, remote: Endpoint | None, who: Who) -> None:
        """Who connected, or bound (no remote), so that records of what is sent later can name it."""
        key = (local.port, packed(remote.host) if remote else b"", remote.port if remote else 0)
        if remote is not None:
            _core.udp_pin(
                self._core, UDP, local.port, key[1], remote.port, packed(local.unmapped().host)
            )
        with self._lock:
            self._callers.pop(key, None)
            self._callers[key] = who
            if len(self._callers) > MOST_CALLERS:
                del self._callers[next(iter(self._callers))]

    def _caller(self, number: int, remote: bytes, port: int) -> tuple[Verb, Who]:
        with self._lock:
            who = self._callers.get((number, remote, port))
            if who is not None:
                return Verb.CONNECT, who
            return Verb.SEND, self._callers.get((number, b"", 0), Who())

    # --- flows

    @property
    def home(self) -> Stack:
        """Who has the ports that the guest binds."""
        return self._stacks.default

    def carriers(self, protocol: Protocol, end: Endpoint, via: Sequence[str]) -> list[Stack]:
        """Who may carry datagrams to there, in their order. Raises OSError: ENETUNREACH where none of the networks that
        their rule names (`via`) is there."""
        return self._stacks.carriers(
            via, protocol, end.host, end.port, self.point.names_of(end.host)
        )

    def via(self, stack: Stack) -> int:
        """The number by which the core knows who carries something; 0 is this host."""
        if stack.here:
            return 0
        with self._lock:
            number, known = self._vias.get(stack.name, (0, None))
            if known is stack:
                return number
            if known is not None:
                _core.udp_doubt(
                    self._core
                )  # another network of that name: flows go by that from now on
            self._via = self._via % LAST_VIA + 1
            self._vias[stack.name] = self._via, stack
            return self._via

    def judge(
        self, protocol: Protocol, end: Endpoint, pid: int = 0, told: Decision | None = None
    ) -> Judged:
        """May the guest send there, the errno if not or if nobody can, and who carries it. Another backend is asked.
        `told` is what was decided beside the rules."""
        decision = told or self.point.connect(protocol, end, pid)
        if not decision.allowed:
            return decision, decision.error, self.home
        try:
            carriers = self.carriers(protocol, end, decision.via)
        except OSError as nobody:
            return decision, nobody.errno or errno.EIO, self.home
        for carrier in carriers:
            said = decision
            if decision.via:
                said = decision.by(carrier.name)
            found = Look(0)
            if decision.via or not carrier.local:  # else the first datagram shows it
                found = carrier.look(protocol, end, end.host == BROADCAST)
            if not decision.via or found.error not in AWAY:
                break
        return final(said, found.decision), found.error, carrier

    def _read_events(self) -> None:
        while events := _core.udp_events(self._core):
            for kind, number, source, sport, remote, rport, start in events:
                if kind == ASK:
                    self._asked(number, source, sport, remote, rport, start)
                else:
                    self._came(source, sport, remote, rport, start)

    def _asked(
        self, number: int, source: bytes, sport: int, remote: bytes, rport: int, start: int
    ) -> None:
        end = Endpoint(unpacked(remote), rport)
        protocol = Protocol.UDP if number == UDP else Protocol.ICMP
        verb, who = self._caller(sport, remote, rport)
        word = self.point.consult(
            Verb.CONNECT, self.point.connect(protocol, end, who.pid), protocol, end, who.pid
        )

        generation = self.point.policy.generation

        def settle(told: Decision | None = None) -> None:
            if told is not None and self.point.policy.generation != generation:
                self._asked(number, source, sport, remote, rport, start)
                return
            self._settle((number, source, sport, remote, rport, start), end, (verb, who), told)

        if word is None:
            settle()
        else:  # the core keeps what is sent meanwhile, and asks about other flows
            word.add_done_callback(lambda w: self._loop.later(0, lambda: settle(w.result())))

    def _settle(
        self,
        asked: tuple[int, bytes, int, bytes, int, int],
        end: Endpoint,
        caller: tuple[Verb, Who],
        told: Decision | None,
    ) -> None:
        """Tell the core what becomes of a flow; `told` is what those said who were asked beside the rules."""
        protocol = Protocol.UDP if asked[0] == UDP else Protocol.ICMP
        who = caller[1]
        decision = told or self.point.connect(protocol, end, who.pid)
        judged = lambda: self.judge(protocol, end, who.pid, decision)  # noqa: E731
        whom = self.slow(protocol, end, decision)
        if not whom:
            self._decided(asked, end, caller, judged)
            return
        # Flows that go elsewhere do not wait for another backend. The core keeps what is sent.
        generation = self.point.policy.generation

        def answered(found: Future[Judged]) -> None:
            if self.point.policy.generation != generation:
                self._asked(*asked)
            else:
                self._decided(asked, end, caller, found.result, whom)

        self.afar.tell(self._loop, whom, (protocol, end, decision), judged, answered)

    def slow(self, protocol: Protocol, end: Endpoint, decision: Decision) -> tuple[str, ...]:
        """The networks that are asked what becomes of datagrams to there, and may take their time; () where there is
        none."""
        if not decision.allowed or decision.via:
            return decision.via
        names = self.point.names_of(end.host)
        carrier = self._stacks.of(protocol, end.host, end.port, names)
        return () if carrier.passer is None else (carrier.name,)

    def _decided(
        self,
        asked: tuple[int, bytes, int, bytes, int, int],
        end: Endpoint,
        caller: tuple[Verb, Who],
        found: Callable[[], Judged],
        whom: tuple[str, ...] = (),
    ) -> None:
        """Tell the core what was found, once there is a socket that sends: `whom` makes one at their leisure."""
        number, source, sport, remote, rport, start = asked
        protocol = Protocol.UDP if number == UDP else Protocol.ICMP
        verb, who = caller
        decision, error, carrier = Decision(False, "fault", errno.EPERM), errno.EPERM, self.home

        def tell(made: Callable[[], None] = lambda: None) -> None:
            failed, by = errno.EPERM, 0
            try:
                made()
                failed, by = error, self.via(carrier)
            except OSError as failure:
                failed = failure.errno or errno.EIO
            finally:
                pinned = verb == Verb.CONNECT
                _core.udp_decide(self._core, number, sport, remote, rport, failed, pinned, by)
            self.write(verb, target(end, protocol), decision, path_of(carrier), failed, who, start)

        try:
            decision, error, carrier = found()
        except OSError as failure:
            error = failure.errno or errno.EIO
        except BaseException:
            tell()  # a fault of ours, which goes on: the core must not wait for a word
            raise
        via = self.via(carrier)
        make = lambda: self._make(carrier, number, source, sport, end)  # noqa: E731
        if error or _core.udp_has(self._core, number, source, sport, via):
            tell()
        elif carrier.passer is None:
            tell(make)
        else:
            what = number, source, sport, via
            self.afar.tell(self._loop, whom, what, make, lambda made: tell(made.result))

    def _came(self, source: bytes, sport: int, remote: bytes, rport: int, start: int) -> None:
        """A stranger's first datagram to a port of the guest's."""
        with self._lock:
            held = self.bound.get((source, sport)) or next(
                (b for (_, port), b in self.bound.items() if port == sport), None
            )
            who = self._callers.get((sport, b"", 0), Who())
        decision = held.decision if held is not None else Decision(True, "default: ports from 1024")
        where = target(Endpoint(unpacked(remote), rport), Protocol.UDP)
        self.write(Verb.ACCEPT, where, decision, path_of(self.home), 0, who, start)

    def _make(self, carrier: Stack, number: int, source: bytes, sport: int, end: Endpoint) -> None:
        """The carrier's socket for a port number from which the guest sends without having bound it."""
        six = unpacked(source).version == 6
        family, wildcard = (socket.AF_INET6, ANY6) if six else (socket.AF_INET, ANY4)
        flags = AUTOMATIC | (SIX if six else 0) | _carried(carrier, self.via(carrier))
        if number == ECHO and not carrier.local:
            ping = carrier.make(family, socket.SOCK_DGRAM, ECHOES[family])
            prepare(ping)
            _core.udp_port(self._core, ECHO, packed(wildcard), sport, ping.detach(), flags, 0)
            return
        if number == ECHO:
            made, identifier = echoing.open_echo(family, carrier.make)
            flags |= RAW if identifier else 0
            _core.udp_port(
                self._core, ECHO, packed(wildcard), sport, made.detach(), flags, identifier
            )
            return
        made = carrier.make(family, socket.SOCK_DGRAM, 0)
        try:
            if not carrier.local:
                prepare(made)
            if six:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if end.host == BROADCAST:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            self._take_number(carrier, made, (str(wildcard), sport))
        except BaseException:
            made.close()
            raise
        if carrier is self.home:
            anywhere = Endpoint(wildcard, 0)
            flags |= OPEN if self.point.listen(Protocol.UDP, anywhere, v6only=six).allowed else 0
        _core.udp_port(self._core, UDP, packed(wildcard), sport, made.detach(), flags, 0)
        self._watch(source, sport, end, packed(wildcard))

    def _take_number(self, carrier: Stack, made: socket.socket, at: tuple[str, int]) -> None:
        """Bind to the guest's own port number where it can be had: taken, or privileged, it is not the guest's."""
        if carrier.name in self._nameless:
            return
        try:
            made.bind(at)
        except OSError as error:
            if carrier.local:
                made.bind((at[0], 0))
            elif error.errno == errno.EACCES:
                self._nameless.add(carrier.name)  # not asked again for each of the guest's sockets

    # --- the end of the guest's sockets

    def _read_diag(self) -> None:
        assert self._diag is not None
        gone, lost = udp_diag.read(self._diag)
        for cookie in gone:
            self._gone(cookie)
        if lost:
            self.release_gone()

    def release_gone(self) -> None:
        """Let go of what sockets had that have ended: the kernel's word of that comes late."""
        if self._diag is None:
            return
        with self._lock:  # who is letting go has done so then
            known = set(self._cookies)
        with suppress(OSError):  # then those ports end when they are idle
            if missing := known - udp_diag.there(self._guest):
                # A dump is of no one moment, and now and then passes over one.
                for cookie in missing - udp_diag.there(self._guest):
                    self._gone(cookie)

    def _gone(self, cookie: int) -> None:
        with self._lock:
            self.groups.gone(cookie)
            address, number, automatic = self._cookies.pop(cookie, (b"", 0, False))
            self._guest.drop(self._names.pop(cookie, ""))
            if not address:
                return
            if automatic:
                _core.udp_unport(self._core, UDP, address, number, 0, True)
                return
            held = self.bound.get((address, number))
            if held is not None:
                held.cookies.discard(cookie)
                if not held.cookies:
                    self._release((address, number))

    def _watch(self, source: bytes, sport: int, end: Endpoint, wildcard: bytes) -> None:
        """Learn which of the guest's sockets has the automatic port, to close it together with that."""
        if self._diag is None:
            return
        with suppress(OSError):
            cookie = udp_diag.find(self._guest, Endpoint(unpacked(source), sport), end)
            if cookie:
                with self._lock:
                    self._cookies[cookie] = (wildcard, sport, True)

    # --- records

    def write(
        self,
        verb: Verb,
        where: str,
        decision: Decision,
        path: Path,
        error: int,
        who: Who,
        start: int,
    ) -> None:
        """Record a flow, or a call on a datagram socket."""
        if not self.point.keeps("allow" if decision.allowed else "deny"):
            return
        if decision.name is None and path in ("relay", "ring"):
            host = where.rpartition("/")[0]
            decision = replace(decision, name=name_of(self.point, host))
        outcome = "guest" if path == "guest" else "allow" if decision.allowed else "deny"
        self.point.write(
            verb,
            where,
            decision,
            outcome,  # type: ignore[arg-type]
            path if decision.allowed else "",
            error,
            pid=who.pid,
            program=who.program,
            start=start,
            took=time.monotonic_ns() - start,
        )


def _carried(carrier: Stack, via: int) -> int:
    """What the core is told of a port's carrier."""
    return via << VIA | (0 if carrier.local else FRAMED | INFORMED * carrier.passer.informed)


def prepare(sock: socket.socket) -> None:
    """Have a backend tell what ICMP says about datagrams (ip(7), IP_RECVERR), and keep as many of those that come as it
    may: they wait there for two more processes. Raises OSError."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)


def _make_room() -> None:
    """As many descriptors as this user may have: every port of the guest's takes one or two. The guest, which runs
    already, keeps its own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
