"""connect(2) and bind(2) of datagram sockets: what a program is told at once. Who may send where is decided again for
every flow, so that nothing depends on these calls."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol, Verb
from xensock.policy.deferred import final
from xensock.policy.networks import AWAY
from xensock.stack.stacks import DecidedError, Look, decided
from xensock.supervisor import binding, memberships, privileged, reusing
from xensock.supervisor.connecting import DNS_PORT, OWN, is_own
from xensock.supervisor.datagram_records import path_of, target
from xensock.supervisor.datagrams import Who, prepare
from xensock.supervisor.diag import cookie
from xensock.supervisor.options import bind_anywhere
from xensock.supervisor.rtnetlink import GUEST4, GUEST6

if TYPE_CHECKING:
    from xensock.calls.record import Path
    from xensock.stack.stacks import Stack
    from xensock.supervisor.datagrams import Datagrams
    from xensock.supervisor.publication import Publication
    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor

    Found = tuple[Decision, int, Stack, Look]

SO_PROTOCOL = 38
TRIES = 64
WAIT_US = 100
PING = (socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6)


def connect(sup: Supervisor, q: Question) -> None:
    """A datagram socket takes a peer: refused by policy or by the host's routes as the host's own would be."""
    datagrams = sup.parts.datagrams
    dest = q.endpoint()
    if datagrams is None or dest is None:
        # AF_UNSPEC dissolves the association; another family is an error that the kernel words.
        sup.answer(q, _core.connect_start(q.sock.fileno(), q.addr, WAIT_US))
        return
    end = dest.unmapped()
    ping = q.sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL) in PING
    protocol = Protocol.ICMP if ping else Protocol.UDP
    if is_own(end.host) or (end.port == DNS_PORT and not ping):
        _take(sup, q, _Peer(end, protocol, inside=True), (OWN, 0, datagrams.home, Look(0)))
        return
    peer = _Peer(end, protocol)
    decision = _judge(datagrams, protocol, end, q.tid)
    if not decision.allowed:
        _take(sup, q, peer, (decision, decision.error, datagrams.home, Look(0)))
        return
    broadcast = bool(q.sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST))

    def look() -> Found:
        return _look(datagrams, decision, broadcast, protocol, end)

    whom = datagrams.slow(protocol, end, decision)
    if not whom:
        _take(sup, q, peer, look())
        return
    try:
        found = datagrams.afar.ask(whom, ("look", protocol, end, broadcast, decision), look)
    except RuntimeError:  # the guest's end
        sup.answer(q, errno.ENETDOWN)
        return

    def take(sup: Supervisor, q: Question) -> None:
        _take(sup, q, peer, q.told)

    sup.waiting.add(q, found, take, connect)


@dataclass(frozen=True, slots=True)
class _Peer:
    """Whom a datagram socket is connected to. `inside`: it is of the guest's own network."""

    end: Endpoint
    protocol: Protocol
    inside: bool = False


def _take(sup: Supervisor, q: Question, peer: _Peer, found: Found) -> None:
    """The rest of `connect`, once it is known who carries datagrams there, if anybody does."""
    datagrams = sup.parts.datagrams
    assert datagrams is not None
    decision, error, carrier, seen = found
    try:
        if not error:
            _take_source(q, seen)
            error = _core.connect_start(q.sock.fileno(), q.addr, WAIT_US)
        if not error and not peer.inside:
            local = Endpoint.from_python(q.sock.getsockname())
            datagrams.remember(local, peer.end, Who(q.tid, q.program))
    except OSError as failure:
        error = failure.errno or errno.EIO
    start, who = q.start_ns, Who(q.tid, q.program)
    sup.answer(q, error)
    if error and not peer.inside:
        # One that succeeds is recorded with its first datagram: resolvers connect only to see a route.
        path, where = path_of(carrier), target(peer.end, peer.protocol)
        datagrams.write(Verb.CONNECT, where, decision, path, error, who, start)


def _judge(datagrams: Datagrams, protocol: Protocol, end: Endpoint, pid: int) -> Decision:
    """Connecting sends nothing, and programs do it to learn their own address (getaddrinfo(3), ping(8)): so it is
    refused only where nothing at all may be sent to that port."""
    if protocol == Protocol.UDP and end.port == 0:
        return Decision(True, "nothing can be sent to port 0")
    if datagrams.point.consults(Verb.CONNECT):
        via = datagrams.point.connect(protocol, end, pid).via
        return Decision(True, "asked about when something is sent", via=via)
    # Whoever carries connections there may carry no datagrams; what is sent is refused then, not the look at the route.
    decision = datagrams.point.connect(protocol, end, pid)
    if not decision.allowed and decision.error == errno.EACCES and protocol == Protocol.UDP:
        echo = Endpoint(end.host, 0, end.scope)
        for other, where in ((Protocol.TCP, end), (Protocol.ICMP, echo)):
            found = datagrams.point.connect(other, where, pid)
            if found.allowed:
                return found
    return decision


def _look(
    datagrams: Datagrams, decision: Decision, broadcast: bool, protocol: Protocol, end: Endpoint
) -> Found:
    """Who carries it, and what they say. As above: another backend may allow no more than an echo there."""
    stack, found = datagrams.home, Look(errno.ENETUNREACH)
    try:
        carriers = datagrams.carriers(protocol, end, decision.via)
    except OSError as failure:
        return decision, failure.errno or errno.EIO, stack, found
    for stack in carriers:
        found = stack.look(protocol, end, broadcast)
        refused = found.decision is not None and not found.decision.allowed
        if refused and found.error == errno.EACCES and protocol == Protocol.UDP:
            if end.port == 0:
                found = Look(0)  # as _judge() says; there is just no address to be learnt
            else:
                echo = stack.look(Protocol.ICMP, Endpoint(end.host, 0, end.scope))
                found = found if echo.error else echo
        if not decision.via or found.error not in AWAY:
            break
    return final(decision, found.decision), found.error, stack, found


def _take_source(q: Question, found: Look) -> None:
    """Bind to the address that is sent from. Raises OSError. A socket that has a port keeps what it has."""
    if found.own is None or q.sock.getsockname()[1]:
        return
    host = str(found.own.host)
    if q.sock.family == socket.AF_INET6 and found.own.host.version == 4:
        host = f"::ffff:{host}"
    bind_anywhere(q.sock, (host, 0))


def bind(sup: Supervisor, q: Question) -> None:
    """A datagram socket takes a local address: the host's too, unless it is the guest's own."""
    datagrams = sup.parts.datagrams
    local = binding.local_of(q)
    if local is None:
        sup.answer(q, binding.wrong(q))
        return
    start, who = q.start_ns, Who(q.tid, q.program)
    ping = q.sock.getsockopt(socket.SOL_SOCKET, SO_PROTOCOL) in PING
    decision, error, outside = OWN, 0, False
    try:
        if not ping and not _may_have(sup, q, local):
            error = errno.EACCES
        elif datagrams is None or ping or not _is_outside(datagrams, q, local.unmapped()):
            _inside(q, local)
        else:
            decision = memberships.may_bind(datagrams, q, local)
            if decision.allowed:
                decision = _listen(datagrams, q, local)
            outside = decision.allowed or local.port == 0
            if not outside:
                error = decision.error
            else:
                local, decision = _bind(datagrams, q, local, decision)
                datagrams.remember(local, None, who)
    except DecidedError as failure:
        decision, error = final(decision, failure.decision), failure.errno or errno.EIO
        outside = False
    except OSError as failure:
        error = failure.errno or errno.EIO
    if datagrams is not None and local.port == DNS_PORT and error == errno.EACCES and not outside:
        decision, error = OWN, _inside_after_all(q, local)
    sup.answer(q, error)
    if datagrams is not None and not ping:
        path: Path = "guest" if decision is OWN else path_of(datagrams.home)
        if outside and not decision.allowed:
            decision = Decision(True, f"answers only ({decision.rule})")
        where = target(local.unmapped(), Protocol.UDP)
        datagrams.write(Verb.BIND, where, decision, path, error, who, start)


def _may_have(sup: Supervisor, q: Question, local: Endpoint) -> bool:
    datagrams = sup.parts.datagrams
    shown = datagrams.published(local.port) if datagrams is not None else None
    if shown is not None:
        return privileged.may_bind_inside(sup, q.tid, local.port, (shown,))
    if datagrams is None or not _is_outside(datagrams, q, local.unmapped()):
        return privileged.may_bind_inside(sup, q.tid, local.port)
    return privileged.may_bind(sup, q.tid, local.port)


def _is_outside(datagrams: Datagrams, q: Question, end: Endpoint) -> bool:
    return not (
        q.sock.getsockname()[1]  # bound already: the kernel says so
        or end.host.is_loopback
        or end.host in (GUEST4, GUEST6)
        # Without a rule for it, one that is bound to a group hears what is sent to that in the guest.
        or (
            end.host.is_multicast
            and not (datagrams.home.local and datagrams.may_bind(end, pid=q.tid).allowed)
        )
    )


def _inside_after_all(q: Question, local: Endpoint) -> int:
    """A name server that may not be one for the outside is the guest's own. The errno of bind(2)."""
    try:
        _inside(q, local)
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _inside(q: Question, local: Endpoint) -> None:
    if local.port == DNS_PORT:
        reusing.bind_reusing(q.sock, local)  # beside our own name service
    else:
        q.sock.bind(local.as_python())


def _listen(datagrams: Datagrams, q: Question, local: Endpoint) -> Decision:
    if datagrams.published(local.port) is not None:
        return Decision(True, f"--publish {local.port}/udp")
    only = q.sock.family == socket.AF_INET6 and bool(
        q.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )
    return datagrams.may_bind(local.unmapped(), only, q.tid)


def _bind(
    datagrams: Datagrams, q: Question, local: Endpoint, decision: Decision
) -> tuple[Endpoint, Decision]:
    """The host's socket first, or another backend's; then the guest's own, on the same number. That address, and what
    was decided. Raises DecidedError, OSError."""
    at = local.unmapped()
    key, inode = cookie(q.sock), os.fstat(q.sock.fileno()).st_ino
    if local.port:
        # Another socket of the guest's may have it: its kernel knows whether they may share.
        first = datagrams.bind_beside(at, lambda: _guest_bind(q, local), key, inode)
        if first is not None:
            return at, final(decision, first)
    for tries in range(TRIES):
        outer = _outer_free(datagrams, q, local)
        decision = final(decision, decided(outer))
        number = local.port or outer.getsockname()[1]
        at, here = Endpoint(at.host, number, at.scope), Endpoint(local.host, number, local.scope)
        datagrams.hold(at, outer, decision)
        try:
            _guest_bind(q, here)
        except OSError as error:
            datagrams.drop(at)
            # The port that the host found free is one that the guest uses inside.
            if local.port or error.errno != errno.EADDRINUSE or tries == TRIES - 1:
                raise
            continue
        datagrams.share(at, key, inode)
        return at, decision
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _guest_bind(q: Question, local: Endpoint) -> None:
    if local.port == DNS_PORT:
        reusing.bind_reusing(q.sock, local)
    else:
        bind_anywhere(q.sock, local.as_python())


def _outer_free(datagrams: Datagrams, q: Question, local: Endpoint) -> socket.socket:
    """As _outer(), also where one that has ended had the port just now."""
    published = datagrams.published(local.port)
    try:
        return _outer(datagrams.home, q, local, published)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    datagrams.release_gone()
    return _outer(datagrams.home, q, local, published)


def _outer(
    home: Stack, q: Question, local: Endpoint, published: Publication | None
) -> socket.socket:
    """The socket outside, bound. It shares its port with nobody: sockets of the guest's that do have one together."""
    end = local if q.sock.family == socket.AF_INET6 else local.unmapped()
    family, host, port = q.sock.family, end.host, local.port
    dual = False
    if published is not None:
        port = published.port
        if published.host is not None:
            host = published.host
            family = socket.AF_INET if host.version == 4 else socket.AF_INET6
        elif local.host.is_unspecified and socket.has_dualstack_ipv6():
            dual = family == socket.AF_INET6
    outer = home.make(family, socket.SOCK_DGRAM, 0)
    try:
        if not home.local:
            prepare(outer)
        if family == socket.AF_INET6:
            only = q.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) if not dual else 0
            if q.sock.family == socket.AF_INET:
                only = 1
            outer.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        outer.bind(Endpoint(host, port, local.scope if host.version == 6 else 0).as_python())
    except BaseException:
        outer.close()
        raise
    return outer
