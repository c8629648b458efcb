"""connect(2): which network the destination is in, what the policy says, who carries it out."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import AddressError, Endpoint, IPAddress
from xensock.calls.call import Decision, Protocol, Verb
from xensock.policy.deferred import final
from xensock.policy.networks import AWAY
from xensock.stack.stacks import decided
from xensock.supervisor import limits, promising, sharing
from xensock.supervisor.carried import asked_of
from xensock.supervisor.checking import terms_of
from xensock.supervisor.diag import cookie
from xensock.supervisor.options import bind_anywhere
from xensock.supervisor.rtnetlink import GUEST4, GUEST6

if TYPE_CHECKING:
    from xensock.calls.record import Path
    from xensock.stack.stacks import Stack
    from xensock.supervisor.question import Question
    from xensock.supervisor.relay import Terms
    from xensock.supervisor.supervisor import Supervisor, Verdict

NamesOf = Callable[[IPAddress], tuple[str, ...]]
DNS_PORT = 53
BEGIN_WAIT_US = 100
TCP_CLOSE = 7  # tcp_info's tcpi_state
LOOPBACK4, LOOPBACK6 = IPv4Address("127.0.0.1"), IPv6Address("::1")
OWN = Decision(True, "the guest's own loopback")


def describe(addr: bytes) -> str:
    try:
        return str(Endpoint.from_sockaddr(addr))
    except AddressError:
        return f"[{len(addr)} bytes]"


def is_own(host: IPAddress) -> bool:
    """Whether an address means the guest itself: loopback, "any" (which connect takes as loopback), its own card."""
    return host.is_loopback or host.is_unspecified or host in (GUEST4, GUEST6)


def connect(sup: Supervisor, q: Question) -> None:
    from xensock.supervisor.supervisor import Verdict

    dest = q.endpoint()
    if dest is None:
        # AF_UNSPEC dissolves the association; anything else of another family is an error the kernel words.
        sup.relayed.discard(cookie(q.sock))
        sup.answer(q, _core.connect_start(q.sock.fileno(), q.addr, 100))
        return
    end = dest.unmapped()
    try:
        if _begun(sup, q):
            path: Path = ("direct" if q.host else "guest") if sup.parts.direct else "relay"
            sup.run_connect(q, Verdict(Decision(True, "begun before"), path, "allow"), begun=True)
        elif is_own(end.host) and not sup.parts.own_family:
            _own(sup, q, end)
        elif end.port == DNS_PORT:
            _dns(sup, q, dest)
        else:
            _outside(sup, q, end)
    except OSError as error:
        _failed(sup, q, error, Verdict(OWN, "guest", "guest"))


def _begun(sup: Supervisor, q: Question) -> bool:
    """Whether this socket connects, is connected or listens already, or failed and has not said so: then the kernel
    answers by its state, and the address does not matter (connect(2): EALREADY, EISCONN, the pending error)."""
    if q.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0] != TCP_CLOSE:
        return True
    key = cookie(q.sock)
    if key not in sup.relayed:
        return False
    sup.relayed.discard(key)
    return True


def _failed(sup: Supervisor, q: Question, error: OSError, verdict: Verdict) -> None:
    """What was decided could not be carried out."""
    number = error.errno or errno.EIO
    sup.answer(q, number)
    sup.record(q, Verb.CONNECT, sup.target(q), verdict, number)


def _own(sup: Supervisor, q: Question, end: Endpoint) -> None:
    """The guest's own listener first, then its published wildcard listener, then a rule for the host's loopback."""
    from xensock.supervisor.supervisor import Verdict

    at = end
    if end.host.is_unspecified:
        at = Endpoint(LOOPBACK4 if end.host.version == 4 else LOOPBACK6, end.port)
    inside = Verdict(OWN, "guest", "guest")
    if not _guest_listens(sup, at):
        if at.port == DNS_PORT:
            _dns(sup, q, at if q.sock.family == socket.AF_INET else q.endpoint() or at)
            return
        if sup.parts.direct and at.host.is_loopback and sup.ports.owner(at):
            sup.move(q, host=True)
            sup.run_connect(q, Verdict(OWN, "direct", "guest"))
            return
        refused = sup.parts.gate() if sup.parts.gate is not None else None
        decision = refused or sup.point.policy.connect(
            Protocol.TCP, at.host, at.port, (), sup.point.subject(q.tid)
        )
        if decision.allowed:
            _ask(sup, q, at, decision)
            return
        # Nobody listens there.
        inside = Verdict(decision, "guest", "guest")
        if q.host and at.host.is_loopback and q.blocking:
            # Nothing to move for. (One that does not wait remembers its failure, which a move would forget.)
            _begun_inside(sup, q, inside, sharing.refused(q, at))
            return
    _inside(sup, q, inside, at)


def _inside(sup: Supervisor, q: Question, verdict: Verdict, at: Endpoint) -> None:
    """Connect within the guest's network."""
    if not q.host:
        sup.run_connect(q, verdict)
        return
    begun = [errno.EIO]
    if at.host.is_loopback and sup.is_shared(q):
        listens = _guest_listens(sup, at)
        error = sharing.connect(sup, q, at) if listens else sharing.refused(q, at)
        if error is not None:
            _begun_inside(sup, q, verdict, error)
            return

    def begin(new: socket.socket) -> None:
        begun[0] = _core.connect_start(new.fileno(), q.addr, BEGIN_WAIT_US)

    sup.move(q, host=False, begin=begin)
    _begun_inside(sup, q, verdict, begun[0])


def _begun_inside(sup: Supervisor, q: Question, verdict: Verdict, error: int) -> None:
    if q.blocking and error == errno.EINPROGRESS:
        sup.await_connect(q, verdict)
        return
    sup.answer(q, error)
    sup.record(q, Verb.CONNECT, sup.target(q), verdict, error)


def _guest_listens(sup: Supervisor, at: Endpoint) -> bool:
    """Whether a connection inside the guest's network would reach a listener of the guest's, not a stand-in of ours."""
    found = sup.guest_diag.listener(at.host, at.port)
    return found is not None and not sup.parts.relay.stands_for(found)


def _itself(sup: Supervisor, q: Question, end: Endpoint) -> None:
    """The guest calls a port of its own by an address of the host: the two meet in its network."""
    from xensock.supervisor.supervisor import Verdict

    if not q.sock.getsockname()[1]:
        host = (
            end.host
            if q.sock.family == socket.AF_INET or end.host.version == 6
            else f"::ffff:{end.host}"
        )
        bind_anywhere(q.sock, (str(host), 0))
    sup.run_connect(q, Verdict(OWN, "guest", "guest"))


def _is_itself(sup: Supervisor, end: Endpoint) -> bool:
    """Relay: whether a connection to this address of the host's network would come back to the guest."""
    from xensock.supervisor import binding

    if not sup.ports.owner(end):
        binding.await_dropped(sup, end.port)  # another backend takes a moment to close its own
        # A port of the guest's on which nobody listens yet: while somebody stood in for it, nobody could.
        return _is_bound(sup, end) and _is_local(sup, end)
    if _guest_listens(sup, end):
        return _is_local(sup, end)
    binding.release_gone(sup)  # closed; the kernel's word of that comes late
    return False


def _is_bound(sup: Supervisor, end: Endpoint) -> bool:
    for outers in sup.reserved.values():
        if outers.guest_port == end.port and not outers.listening:
            own = Endpoint.from_python(outers.sockets[0].getsockname()).unmapped().host
            if own == end.host or own.is_unspecified:
                return True
    return False


def _is_local(sup: Supervisor, end: Endpoint) -> bool:
    """Whether the host has this address, as bind(2) knows, which then finds the port taken; a listener at every address
    is found for those of others, too. At another backend it is the port that its policy let the guest have."""
    with sup.parts.stacks.default.make(end.family, socket.SOCK_STREAM, 0) as trial:
        try:
            trial.bind(end.as_python())
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
    return True


def _outside(sup: Supervisor, q: Question, end: Endpoint) -> None:
    if not sup.parts.direct and _is_itself(sup, end):
        _itself(sup, q, end)
        return
    _ask(sup, q, end, sup.point.connect(Protocol.TCP, end, q.tid))


def _ask(sup: Supervisor, q: Question, end: Endpoint, decision: Decision) -> None:
    """Go on with what the rules decided, or with what those say who are asked beside them."""
    word = sup.point.consult(Verb.CONNECT, decision, Protocol.TCP, end, q.tid)
    if word is None:
        _decided(sup, q, end, decision)
        return

    def told(sup: Supervisor, q: Question) -> None:
        try:
            if _begun(sup, q):  # meanwhile, by another thread
                connect(sup, q)
            else:
                _decided(sup, q, end, q.told or decision)
        except OSError as error:
            _failed(sup, q, error, Verdict(q.told or decision, "", "deny"))

    from xensock.supervisor.supervisor import Verdict

    sup.waiting.add(q, word, told, connect)


def _decided(sup: Supervisor, q: Question, end: Endpoint, decision: Decision) -> None:
    if decision.allowed:
        _allowed(sup, q, end, decision)
    else:
        sup.refuse_connect(q, decision)


def _allowed(sup: Supervisor, q: Question, end: Endpoint, decision: Decision) -> None:
    terms = terms_of(sup, q, end, decision)
    if isinstance(terms, Decision):
        sup.refuse_connect(q, terms)
        return
    try:
        _carry_out(sup, q, end, decision, terms)
    except OSError as error:
        _could_not(sup, q, decision, error)


def _could_not(sup: Supervisor, q: Question, decision: Decision, error: OSError) -> None:
    from xensock.supervisor.supervisor import Verdict

    path: Path = "direct" if sup.parts.direct else "relay"
    _failed(sup, q, error, Verdict(decision, path, "allow"))


def _carry_out(
    sup: Supervisor, q: Question, end: Endpoint, decision: Decision, terms: Terms | None
) -> None:
    from xensock.supervisor.supervisor import Verdict

    own = Endpoint.from_python(q.sock.getsockname()).unmapped()
    if not q.host and own.host.is_loopback and not end.host.is_loopback:
        # From loopback nothing leaves (ip(7)): on a host the kernel would say so.
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if sup.parts.direct and not decision.needs_relay:
        # To the host's loopback each time anew: the guest's own listener may come to be there.
        cache = decision.cacheable and not is_own(end.host)
        sup.move(q, host=True)
        sup.run_connect(q, Verdict(decision, "direct", "allow"), cache=cache)
        return
    relay = sup.parts.relay
    dialling = relay.dialling() + sup.waiting.count() + len(sup.held.abandoned)
    limits.check(sup, "connects", dialling, errno.EAGAIN)
    moved = relay.connections() + sup.parts.stacks.live()
    limits.check(sup, "connections", moved, errno.EAGAIN)
    stacks = sup.parts.stacks
    names = sup.parts.names_of(end.host)
    carriers = stacks.carriers(decision.via, Protocol.TCP, end.host, end.port, names)
    sup.move(q, host=False)  # where another path carries its calls it may be the host's
    blocking = q.blocking
    key = cookie(q.sock)
    dest = end if q.sock.family == socket.AF_INET else q.endpoint() or end
    bound = _bound_outside(sup, q, key)
    attempt = Attempt(end, dest, decision, terms, carriers, key, blocking, bound)
    _try_next(sup, q, attempt)


@dataclass(slots=True, eq=False)
class Attempt:
    """A call that others carry: `left` are those who have not tried yet, in their order."""

    end: Endpoint
    dest: Endpoint
    asked: Decision
    terms: Terms | None
    left: list[Stack]
    key: int
    blocking: bool
    bound: socket.socket | None


def _try_next(sup: Supervisor, q: Question, call: Attempt) -> None:
    """Let the next one carry the call. Raises OSError. Other calls do not wait for another backend; only the guest's
    own one, without which there is nothing for it, is asked here."""
    stack = call.left.pop(0)
    default, redirect = sup.parts.stacks.default, call.asked.redirect
    bound, call.bound = call.bound, None
    if stack.passer is None or stack is default or isinstance(redirect, str):
        _tried(sup, q, call, stack, _far(default, stack, call.asked, call.end, bound))
        return
    if bound is not None:
        bound.close()
    dial = promising.dial(sup, stack, asked_of(q.sock), call.end if redirect is None else redirect)

    def go_on(sup: Supervisor, q: Question) -> None:
        far, begun = q.told
        q.told = None
        try:
            _tried(sup, q, call, stack, far, begun)
        except OSError as error:
            _could_not(sup, q, call.asked, error)

    def late(sup: Supervisor, q: Question) -> bool:
        try:
            return promising.promise(sup, q, call, stack, dial)
        except OSError as error:
            _could_not(sup, q, call.asked, error)
            return False

    sup.waiting.add(
        q,
        dial,
        go_on,
        connect,
        promising.close_unused,
        lambda: promising.give_up(sup, stack.passer.dials, dial),
        None if call.blocking else late,
    )


def _tried(
    sup: Supervisor,
    q: Question,
    call: Attempt,
    stack: Stack,
    far: socket.socket | int,
    begun: int | None = None,
) -> None:
    """Go on with what carries the call, or the errno where there is nothing; `begun` as for Relay.connect. Raises
    OSError."""
    from xensock.supervisor.supervisor import Verdict

    decision, terms, key, blocking = call.asked, call.terms, call.key, call.blocking
    path: Path = "relay" if stack.local else "ring"
    if decision.via:
        decision = decision.by(stack.name)
    if isinstance(far, int):
        error = far
    else:
        ended = sup.ended(q, Verdict(decision, path, "allow"))
        if terms is not None:
            terms.ended = ended
        relay, dial = sup.parts.relay, decision.redirect
        error = relay.connect(q.sock, call.dest, dial, terms or ended, far, begun=begun)
    if error in AWAY and call.left:
        _try_next(sup, q, call)
        return
    if isinstance(far, int):
        raise OSError(far, os.strerror(far))
    decision = final(decision, decided(far))
    if error == errno.EACCES and is_own(call.end.host) and not stack.local:
        # Not the backend's loopback then, but the guest's, where nobody listens.
        _inside(sup, q, Verdict(decision, "guest", "guest"), call.end)
        return
    verdict = (
        Verdict(decision, path, "allow") if decision.allowed else Verdict(decision, "", "deny")
    )
    if error in (0, errno.EINPROGRESS) and not blocking:
        # A caller that waits is told the end by the core, which takes it off the socket.
        sup.remember_relayed(key)
    if error == errno.EINPROGRESS and blocking:
        sup.await_connect(q, verdict)
        return
    if error == 0 and not blocking:
        error = errno.EINPROGRESS  # as the kernel words it for a socket that does not wait
    sup.answer(q, error)
    known = key if error in (0, errno.EINPROGRESS) else 0
    sup.record(q, Verb.CONNECT, sup.target(q), verdict, error, connection=known)


def _bound_outside(sup: Supervisor, q: Question, key: int) -> socket.socket | None:
    """The socket that was bound for the caller's where the guest's ports are, to dial with, and no other's then."""
    from xensock.supervisor import binding

    outers = sup.reserved.pop(key, None)
    if outers is None:
        return None
    binding.forget(sup, key, outers)
    if not outers.listening:
        return outers.sockets[0]
    # A listener that shutdown(2) took apart, which is not known yet: over rings nobody tells.
    name = outers.sockets[0].getsockname()
    for each in outers.sockets:
        sup.parts.relay.unpublish(each)
        each.close()
    if outers.inside:
        return None
    again = binding.outer_like(sup, q.sock)
    try:
        again.bind(name)
    except OSError:
        again.close()
        return None
    return again


def _far(
    default: Stack, stack: Stack, decision: Decision, end: Endpoint, bound: socket.socket | None
) -> socket.socket | int:
    """The socket by which a stack dials, `bound` if that will do; the errno where there is none."""
    redirect = decision.redirect
    if bound is not None and (stack is not default or redirect is not None):
        bound.close()  # bound where the guest's ports are; this goes elsewhere
        bound = None
    if bound is not None:
        return bound
    try:
        if isinstance(redirect, str):
            return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        family = redirect.family if redirect is not None else end.family
        return stack.make(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC, 0)
    except OSError as error:
        return error.errno or errno.EIO


def _dns(sup: Supervisor, q: Question, dest: Endpoint) -> None:
    """DNS over TCP, whatever server is asked, ends at the backend's name service in the guest's network."""
    from xensock.supervisor.supervisor import Verdict

    verdict = Verdict(Decision(True, "name service"), "dns", "allow")
    try:
        stream = _dns_stream(sup, q, dest, verdict)
    except OSError as error:
        _failed(sup, q, error, verdict)
        return
    if stream is not None:
        sup.parts.dns.serve_stream(stream)


def _dns_stream(
    sup: Supervisor, q: Question, dest: Endpoint, verdict: Verdict
) -> socket.socket | None:
    """Our end of the caller's connection; None if it is not ours."""
    from xensock.supervisor.supervisor import Verdict

    sup.move(q, host=False)
    end = dest.unmapped()
    listener = sup.parts.guest.socket(
        socket.AF_INET if end.host.version == 4 else socket.AF_INET6, socket.SOCK_STREAM, 0
    )
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.settimeout(1)
        try:
            bind_anywhere(listener, end.as_python())
            listener.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            sup.run_connect(
                q, Verdict(OWN, "guest", "guest")
            )  # the guest's own server on every address
            return None
        sup.run_connect(q, verdict)
        try:
            stream, _ = listener.accept()
        except TimeoutError:
            return None  # the guest closed first, or had this socket connected already
    return stream
