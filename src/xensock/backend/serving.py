"""What serves one guest, whoever started it: names, relay, datagrams and the supervisor."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from xensock.backend.learned import Learned
from xensock.calls.call import Protocol
from xensock.observe.tap import Tap
from xensock.policy.names import Names
from xensock.policy.point import Current, Point
from xensock.supervisor import options
from xensock.supervisor.datagrams import Datagrams
from xensock.supervisor.diag import open_host
from xensock.supervisor.dns import DnsServer
from xensock.supervisor.ending import Endings
from xensock.supervisor.limits import Limits
from xensock.supervisor.publication import Publications
from xensock.supervisor.relay import Relay
from xensock.supervisor.supervisor import Parts, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import ExitStack

    from xensock.calls.address import IPAddress
    from xensock.calls.record import Record
    from xensock.policy.asking import Asker
    from xensock.policy.gate import Gate
    from xensock.policy.point import Near
    from xensock.policy.policy import Policy
    from xensock.stack.resolver import Resolver
    from xensock.stack.stacks import Stacks
    from xensock.supervisor.dns import MessageResolver
    from xensock.supervisor.guest import Guest
    from xensock.supervisor.publication import Publication

LAST_BYTES_S = 60.0
LAST_ENDS_S = 2.0


@dataclass(frozen=True, slots=True)
class Carriers:
    """Who carries calls and who answers questions for names; `undo` closes them while no guest uses them."""

    stacks: Stacks
    answering: MessageResolver
    resolver: Resolver  # this host's
    undo: ExitStack


@dataclass(frozen=True, slots=True)
class Terms:
    """What a guest may do, and under which name it does it."""

    name: str
    policy: Policy | Current
    direct: bool  # its TCP sockets are the host's
    publications: tuple[Publication, ...] = ()
    record: Callable[[Record], None] | None = None
    complain: Callable[[str], None] = lambda text: None
    own_family: bool = False  # AF_XENSOCK alone leaves the guest
    labels: Mapping[str, str] = field(default_factory=dict)
    gate: Gate | None = None  # see Point
    inner: IPAddress | None = None  # see Publications
    near: Near | None = None  # see Point
    limits: Limits = field(default_factory=Limits)
    warn: Callable[[str], None] = lambda text: None
    asker: Asker | None = None  # see Point


@dataclass(frozen=True, slots=True)
class Serving:
    """A guest that is served; `parts` are those of its supervisors."""

    relay: Relay
    stacks: Stacks
    parts: Parts
    first: Supervisor
    endings: Endings

    def live(self) -> bool:
        """Whether what the guest sent is still on its way, or the ends of its connections are yet to be recorded."""
        return bool(self.relay.connections() or self.stacks.live() or self.endings.live())

    def also(
        self, listener: int, killable: bool, ended: Callable[[], None], journal: int = -1
    ) -> Supervisor:
        """A supervisor, not started yet, for processes that came into the guest under a filter of their own.

        `listener` is that filter's, and the supervisor's from now on; `ended` is called on its thread at their end.
        """
        parts = replace(
            self.parts, listener=listener, killable=killable, ended=ended, journal=journal
        )
        return Supervisor(parts, beside=self.first)

    def deliver(self) -> None:
        """Wait until what an ended guest sent has arrived, or nobody takes it."""
        if self.relay.connections() or self.stacks.live():
            self.relay.close(LAST_BYTES_S)


def serve(
    guest: Guest,
    terms: Terms,
    carriers: Carriers,
    stack: ExitStack,
    ended: Callable[[], None] = lambda: None,
) -> Serving:
    """Serve a guest whose listener is known until `stack` unwinds. Raises OSError.

    `ended` is called on the supervisor's thread once no process of the guest's filter is left.
    """
    names, record, stacks = Names(), terms.record, carriers.stacks
    if guest.keep is not None:
        stack.callback(_learned(guest, names).close)
    carriers.undo.pop_all()
    stack.callback(stacks.close, LAST_BYTES_S)
    current = terms.policy if isinstance(terms.policy, Current) else Current(terms.policy)

    def names_of(address: IPAddress) -> tuple[str, ...]:
        # A guest's own libc reads /etc/hosts without asking us.
        return (*names.of(address), *carriers.resolver.hosts_names(address))

    point = Point(
        terms.name,
        current,
        names_of,
        record,
        terms.labels,
        names.lapsed,
        gate=terms.gate,
        near=terms.near,
        keep=names.keep,
        asker=terms.asker,
    )
    endings = Endings(record or (lambda r: None), point.epoch)
    stack.callback(endings.close, LAST_ENDS_S)
    dns = DnsServer(terms.name, carriers.answering, point, names, record or (lambda r: None))
    dns.start(_name_sockets(guest))
    stack.callback(dns.close)
    relay = Relay(guest.socket)
    relay.judge(point.admit)
    stack.callback(relay.close)
    published = [p for p in terms.publications if p.protocol == Protocol.UDP]
    datagrams = None
    try:
        if not terms.own_family:  # its card could not tell the families apart
            datagrams = Datagrams(guest, point, stacks, published)
            stack.callback(datagrams.close)
    except OSError as error:
        terms.complain(f"no UDP and no ICMP for the guest: {error}\n")
    host_diag = open_host()
    stack.callback(host_diag.close)
    parts = Parts(
        guest,
        terms.name,
        current,
        names_of,
        relay,
        dns,
        host_diag,
        terms.direct,
        stacks,
        Publications(
            tuple(p for p in terms.publications if p.protocol == Protocol.TCP), terms.inner
        ),
        datagrams,
        record,
        terms.complain,
        terms.own_family,
        guest.listener,
        guest.killable,
        endings,
        terms.gate,
        ended,
        point,
        terms.limits,
        terms.warn,
        guest.journal,
    )
    first = Supervisor(parts)
    if guest.resumed:
        from xensock.supervisor import rearming

        rearming.resume(first)
    first.start()
    stack.callback(first.stop)
    if isinstance(record, Tap):
        _follow(record, first, endings, stack)
    return Serving(relay, stacks, parts, first, endings)


def _learned(guest: Guest, names: Names) -> Learned:
    fd = guest.left.pop("names", -1)
    fd = fd if fd >= 0 else os.memfd_create("xensock-names", os.MFD_CLOEXEC)
    try:
        assert guest.keep is not None
        guest.keep("names", fd)
        return Learned(names, fd)
    finally:
        os.close(fd)


def _follow(tap: Tap, supervisor: Supervisor, endings: Endings, stack: ExitStack) -> None:
    """Find out what records need exactly while somebody wants them."""

    def changed() -> None:
        supervisor.recording()
        endings.watch(tap.ends)

    tap.watch(changed)
    stack.callback(tap.unwatch, changed)


def _name_sockets(guest: Guest) -> list[socket.socket]:
    """Port 53 of every address of the guest's network."""
    made = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            made.append(guest.kept(f"dns{family}", partial(_name_socket, guest, family)))
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise
    return made


def _name_socket(guest: Guest, family: int) -> socket.socket:
    sock = guest.socket(family, socket.SOCK_DGRAM, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Answers come from the address that was asked, which need not be any interface's.
        sock.setsockopt(*options.FREEBIND6, 1)
    sock.bind(("0.0.0.0" if family == socket.AF_INET else "::", 53))
    return sock
