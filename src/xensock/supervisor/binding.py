"""bind(2) and listen(2): the guest's loopback stays its own, everything else is the host's by policy."""

from __future__ import annotations

import errno
import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol, Verb
from xensock.policy.deferred import final
from xensock.stack.stacks import DecidedError, decided
from xensock.supervisor import limits, options, reusing
from xensock.supervisor.connecting import LOOPBACK4, LOOPBACK6, OWN, TCP_CLOSE
from xensock.supervisor.diag import CONNECTED, cookie
from xensock.supervisor.privileged import PRIVILEGED, may_bind, may_bind_inside
from xensock.supervisor.rtnetlink import GUEST4, GUEST6

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.calls.address import IPAddress
    from xensock.calls.record import Path
    from xensock.supervisor.publication import Publication
    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor, Verdict

PORT_TRIES = 64
DROP_S = 1.0
V6ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
ANY4, ANY6 = IPv4Address(0), IPv6Address(0)
OUTER, INSIDE = "outer", "inside"  # in names of what is kept for a successor


@dataclass(slots=True)
class Outers:
    """What stands on the host's network for a socket of the guest's own: bound, or listening."""

    sockets: list[socket.socket]
    guest_port: int
    listening: bool = False
    inside: bool = False  # of a listener that is only published


def bind(sup: Supervisor, q: Question) -> None:
    local = local_of(q)
    if local is None:
        sup.answer(q, wrong(q))
        return
    if _asked(sup, q, local.unmapped(), bind):
        return
    verdict, error = _bind(sup, q, local)
    sup.answer(q, error)
    sup.record(q, Verb.BIND, str(local), verdict, error)


def _asked(sup: Supervisor, q: Question, end: Endpoint, again: Callable[..., None]) -> bool:
    """Whether somebody beside the rules is asked about a local address; the call goes on once it is known."""
    hooks = sup.point.policy.hooks
    if hooks is None or q.told is not None or not end.port or sup.parts.publications.of(end.port):
        return False
    if _stays_inside(sup, end) or (again is bind and _is_bound(sup, q)):
        return False
    word = sup.point.consult(Verb.LISTEN, listen_decision(sup, q, end), Protocol.TCP, end, q.tid)
    if word is not None:
        sup.waiting.add(q, word, again, again)
    return word is not None


def _stays_inside(sup: Supervisor, end: Endpoint) -> bool:
    loopback = end.host.is_loopback and not sup.parts.own_family
    return loopback or end.host in (GUEST4, GUEST6) or _mapped(sup, end) is not None


def local_of(q: Question) -> Endpoint | None:
    """The address to bind; AF_UNSPEC with INADDR_ANY is an old spelling of AF_INET (ip(7), inet_bind)."""
    if (
        q.sock.family == socket.AF_INET
        and len(q.addr) >= 16
        and q.addr[:2] == b"\0\0"
        and q.addr[4:8] == bytes(4)
    ):
        q.addr = socket.AF_INET.to_bytes(2, "little") + q.addr[2:]
    return q.endpoint()


def wrong(q: Question) -> int:
    """The kernel's errno for an address that is not of the socket's family (inet_bind, inet6_bind)."""
    shortest = 16 if q.sock.family == socket.AF_INET else 24
    return errno.EINVAL if len(q.addr) < shortest else errno.EAFNOSUPPORT


def _bind(sup: Supervisor, q: Question, local: Endpoint) -> tuple[Verdict, int]:
    from xensock.supervisor.supervisor import Verdict

    end = local.unmapped()
    verdict = inside = Verdict(OWN, "guest", "guest")
    try:
        if _is_bound(sup, q):
            return inside, _bound_already(sup, q, local)
        if _stays_inside(sup, end):
            return inside, _bind_inside(sup, q, local, end)
        decision = listen_decision(sup, q, end)
        if not end.port and not decision.allowed:
            decision = Decision(True, "")  # its port is judged once it is known
        if not decision.allowed:
            return Verdict(decision, "", "deny"), decision.error
        verdict = Verdict(decision, _path(sup, decision), "allow")
        if sup.parts.direct and not decision.needs_relay:
            error = _bind_host(sup, q, local, end)
        else:
            sup.move(q, host=False)
            error = _bind_both(sup, q, local)
        verdict = _carried(sup, decision, decided(_outer(sup, q)))
    except DecidedError as failure:
        return _carried(sup, decision, failure.decision), failure.errno or errno.EIO
    except OSError as failure:
        error = failure.errno or errno.EIO
    return verdict, error


def _carried(sup: Supervisor, ours: Decision, theirs: Decision | None) -> Verdict:
    """What a call runs under that another backend may have decided, too."""
    from xensock.supervisor.supervisor import Verdict

    decision = final(ours, theirs)
    return (
        Verdict(decision, _path(sup, decision), "allow")
        if decision.allowed
        else Verdict(decision, "", "deny")
    )


def _path(sup: Supervisor, decision: Decision) -> Path:
    """How connections to a published listener of this guest travel."""
    return "direct" if sup.parts.direct and not decision.needs_relay else _inward(sup)


def _inward(sup: Supervisor) -> Path:
    """How connections to a listener of the guest's own network travel."""
    return "relay" if sup.parts.stacks.default.local else "ring"


def _is_bound(sup: Supervisor, q: Question) -> bool:
    return options.is_bound(q.sock, socket.socket if q.host else sup.parts.guest.socket)


def listen_decision(sup: Supervisor, q: Question, end: Endpoint) -> Decision:
    if found := sup.parts.publications.of(end.port):
        return _published(sup, q, found[0])
    if q.told is not None:
        return sup.point.heard(q.told)
    only = q.sock.family == socket.AF_INET6 and bool(
        q.sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )
    return sup.point.listen(Protocol.TCP, end, v6only=only, pid=q.tid)


def _published(sup: Supervisor, q: Question, p: Publication) -> Decision:
    if p.host is None or p.host != sup.parts.publications.inner:
        return Decision(True, f"--publish {p.guest_port}")
    if q.host:  # of a port that the kernel chose, and everybody would reach
        return Decision(False, "listen = published", errno.EACCES)
    return Decision(True, "listen = published: for its group")


def _mapped(sup: Supervisor, end: Endpoint) -> Publication | None:
    """A publication that gives this port another face outside, so that the guest keeps it to itself."""
    for p in sup.parts.publications.of(end.port):
        if p.port != p.guest_port or p.host is not None:
            return p
    return None


def _bound_already(sup: Supervisor, q: Question, local: Endpoint) -> int:
    """The kernel's errno for a second bind(2), from a socket of ours: the caller's may lose its port meanwhile (by a
    thread that calls shutdown(2)), and would get this one, which nobody has judged. Raises OSError."""
    make = socket.socket if q.host else sup.parts.guest.socket
    with make(q.sock.family, socket.SOCK_STREAM, 0) as other:
        _like(q.sock, other)
        name = options.freebind(q.sock.family)
        other.setsockopt(*name, q.sock.getsockopt(*name))
        if not q.host and q.sock.family == socket.AF_INET and not other.getsockopt(*name):
            _look_at(sup, local)
        other.bind((str(LOOPBACK4 if q.sock.family == socket.AF_INET else LOOPBACK6), 0))
        other.bind(local.as_python())
    return errno.EINVAL


def _look_at(sup: Supervisor, local: Endpoint) -> None:
    """IPv4 looks at the address before it finds a socket bound (__inet_bind), and the guest's network would have any.
    Raises OSError: EADDRNOTAVAIL where the network that guests are bound in lacks it."""
    try:
        with sup.parts.stacks.default.make(socket.AF_INET, socket.SOCK_STREAM, 0) as trial:
            trial.bind((str(local.host), 0))
    except OSError as error:  # what else another backend says is about this trial
        if error.errno == errno.EADDRNOTAVAIL:
            raise OSError(error.errno, os.strerror(error.errno)) from error


def _listen_judged(sock: socket.socket, local: Endpoint, backlog: int) -> None:
    """listen(2) of a host's socket, at the address that was judged and at no other. Raises OSError.

    Another thread can take its port away before (shutdown(2) of a listener, a connection attempt that ends); the kernel
    then chooses one by itself, and IPV6_V6ONLY may have been changed.
    """
    only = sock.family == socket.AF_INET6 and sock.getsockopt(*V6ONLY)
    sock.listen(backlog)
    now = sock.family == socket.AF_INET6 and sock.getsockopt(*V6ONLY)
    there = Endpoint.from_python(sock.getsockname())
    # Port 0 was judged as any that is free (IP_BIND_ADDRESS_NO_PORT).
    if there.host != local.host or local.port not in (0, there.port) or now != only:
        sock.shutdown(socket.SHUT_RDWR)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _bind_inside(sup: Supervisor, q: Question, local: Endpoint, end: Endpoint) -> int:
    if not may_bind_inside(sup, q.tid, end.port, sup.parts.publications.of(end.port)):
        return errno.EACCES
    # The guest's own wildcard listener holds the port on its loopback too, although it lives in the host's network.
    if end.port and end.host.is_loopback and sup.parts.direct and sup.ports.owner(end):
        return errno.EADDRINUSE
    sup.parts.relay.release_port(end.port)
    if q.host and end.host.is_loopback and sup.is_shared(q) and _bind_shared(sup, q, local):
        return 0
    sup.move(q, host=False)
    reusing.bind(sup.parts.relay, q.sock, local, twin=False)
    return 0


def _bind_shared(sup: Supervisor, q: Question, local: Endpoint) -> bool:
    """Bind a socket that several processes hold to the guest's loopback, for all of them: it gets the same name in the
    host's network, and moves when one of them listens. False where the host's port is taken. Raises OSError."""
    for _ in range(PORT_TRIES):
        port = _free_inside(sup, q, local)
        try:
            q.sock.bind(Endpoint(local.host, port, local.scope).as_python())
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            if local.port:
                return False
        else:
            return True
    return False


def _free_inside(sup: Supervisor, q: Question, local: Endpoint) -> int:
    """The port, this one or any, that the caller's socket could have in the guest's network. Raises OSError."""
    with sup.parts.guest.socket(q.sock.family, socket.SOCK_STREAM, 0) as trial:
        _like(q.sock, trial)
        trial.bind(local.as_python())
        return int(trial.getsockname()[1])


def _bind_host(sup: Supervisor, q: Question, local: Endpoint, end: Endpoint) -> int:
    loopback = LOOPBACK4 if end.host.version == 4 else LOOPBACK6
    if (
        end.port
        and end.host.is_unspecified
        and sup.guest_diag.listener(loopback, end.port) is not None
    ):
        return errno.EADDRINUSE
    if 0 < end.port < PRIVILEGED and not may_bind(sup, q.tid, end.port):
        return errno.EACCES
    sup.move(q, host=True)
    limits.take_port(sup, q.sock)
    sup.ports.bind(q.sock, local)
    return 0


def _outer(sup: Supervisor, q: Question) -> socket.socket | None:
    """The host's socket that shares the name of the guest's, or the first that publishes it."""
    outers = sup.reserved.get(cookie(q.sock))
    return None if outers is None else outers.sockets[0]


def _bind_both(sup: Supervisor, q: Question, local: Endpoint) -> int:
    """Relay: the host's port is reserved first, then the guest's own socket takes the same one in its network."""
    stranger = 0 < local.port < PRIVILEGED and not may_bind(sup, q.tid, local.port)
    if stranger and sup.parts.stacks.default.local:
        return errno.EACCES
    limits.check(sup, "ports", len(sup.reserved), errno.EADDRINUSE)
    tried: list[socket.socket] = []  # held meanwhile, so that the host gives another port
    try:
        outer = _bind_pair(sup, q, local, stranger, tried)
    finally:
        for each in tried:
            each.close()
    key = cookie(q.sock)
    sup.reserved[key] = Outers([outer], outer.getsockname()[1])
    _keep(sup, key, sup.reserved[key])
    sup.parts.relay.watch(key, lambda: drop(sup, key), listening=False)
    return 0


def _bind_pair(
    sup: Supervisor, q: Question, local: Endpoint, stranger: bool, tried: list[socket.socket]
) -> socket.socket:
    """The host's socket, bound; the guest's own is bound to the same port. Raises OSError.

    A `stranger` to the port is refused once the other backend's policy had its say.
    """
    while True:
        outer = outer_like(sup, q.sock)
        tried.append(outer)
        try:
            sup.ports.bind(outer, local)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            release_gone(sup)
            sup.ports.bind(outer, local)  # whoever it was may have gone while we looked
        if stranger:
            raise DecidedError(errno.EACCES, decided(outer) or Decision(True, ""))
        port = outer.getsockname()[1]
        try:
            reusing.bind(
                sup.parts.relay, q.sock, Endpoint(local.host, port, local.scope), twin=True
            )
        except OSError as error:
            # The port that the host found free may still be that of an ended connection in the guest's network.
            if local.port or error.errno != errno.EADDRINUSE or len(tried) >= PORT_TRIES:
                raise
            continue
        tried.remove(outer)
        return outer


def outer_like(sup: Supervisor, sock: socket.socket) -> socket.socket:
    """A socket of the host with what matters to bind(2) as on the guest's."""
    outer = sup.parts.stacks.default.make(sock.family, socket.SOCK_STREAM, 0)
    _like(sock, outer)
    return outer


def _like(sock: socket.socket, other: socket.socket) -> None:
    """Give another socket what matters to bind(2)."""
    for name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        try:
            other.setsockopt(socket.SOL_SOCKET, name, sock.getsockopt(socket.SOL_SOCKET, name))
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:  # a backend of version 1 carries no options
                raise
    if sock.family == socket.AF_INET6:
        only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)


def release_gone(sup: Supervisor) -> None:
    """Free what the host holds for sockets that the guest has closed: the kernel's word of that comes late, and another
    backend takes a moment to close its own. Afterwards a port that is taken is somebody else's.

    On Linux before 6.8, which does not tell who is only bound, those wait for that word.
    """
    with suppress(OSError):  # then those, too, wait for the kernel's word
        _release_gone(sup)
    await_dropped(sup)  # last: the relay's thread drops, too


def _release_gone(sup: Supervisor) -> None:
    """Raises OSError where the kernel shows no sockets."""
    reserved = list(sup.reserved.items())
    diag = sup.guest_diag
    there = {each.cookie for each in diag.held()}
    for key, outers in reserved:
        if key in there or not (outers.listening or diag.shows_bound(sup.parts.guest.socket)):
            continue
        # A dump is of no one moment, and now and then passes over one: who is missing is missed twice.
        again = diag.held(outers.guest_port) + diag.held(outers.guest_port, CONNECTED)
        if all(each.cookie != key for each in again):
            drop(sup, key)


def await_dropped(sup: Supervisor, port: int = 0) -> None:
    """Wait for another thread that is closing what the host holds for a socket of the guest's (with this port)."""
    for dropped, its in list(sup.dropping.items()):
        if not port or its == port:
            dropped.wait(DROP_S)


def _names(key: int, outers: Outers) -> list[str]:
    inside = INSIDE if outers.inside else "both"
    return [f"{OUTER}.{key}.{outers.guest_port}.{inside}.{n}" for n in range(len(outers.sockets))]


def _keep(sup: Supervisor, key: int, outers: Outers) -> None:
    """For a successor of this backend (rearming)."""
    keep = sup.parts.guest.keep
    for name, each in zip(_names(key, outers), outers.sockets, strict=True):
        if keep is not None:
            keep(name, each.fileno())


def forget(sup: Supervisor, key: int, outers: Outers) -> None:
    """Undo _keep()."""
    for name in _names(key, outers):
        sup.parts.guest.drop(name)


def drop(sup: Supervisor, key: int) -> None:
    """Free what the host holds for a socket of the guest's that is gone."""
    dropped, known = threading.Event(), sup.reserved.get(key)
    sup.dropping[dropped] = known.guest_port if known is not None else 0
    try:
        outers = sup.reserved.pop(key, None)
        if outers is not None:
            forget(sup, key, outers)
        for each in outers.sockets if outers is not None else ():
            sup.parts.relay.unpublish(each)
            each.close()
    finally:
        dropped.set()
        sup.dropping.pop(dropped)


def _heed(sup: Supervisor, q: Question) -> None:
    if sup.parts.stacks.default.local:
        key = cookie(q.sock)
        sup.parts.relay.heed(q.sock, key, lambda: _shut(sup, key))


def _shut(sup: Supervisor, key: int) -> None:
    """The guest's listener was taken apart by shutdown(2), and may listen again: so it goes with the host's."""
    outers = sup.reserved.get(key)
    if outers is None or not outers.listening:
        return
    if outers.inside:
        drop(sup, key)
        return
    outers.listening = False
    outer = outers.sockets[0]
    sup.ports.shut(outer)
    sup.parts.relay.withdraw(outer)
    host, _, *more = outer.getsockname()
    outer.shutdown(socket.SHUT_RDWR)
    try:
        outer.bind((host, outers.guest_port, *more))  # the kernel takes back a port that it chose
    except OSError as error:
        if error.errno != errno.EINVAL:  # still bound
            drop(sup, key)


def listen(sup: Supervisor, q: Question) -> None:
    from xensock.supervisor.supervisor import Verdict

    backlog = q.args[1] & 0xFFFFFFFF
    backlog = backlog - (1 << 32) if backlog >= 1 << 31 else backlog
    verdict, error, target = Verdict(OWN, "guest", "guest"), 0, "-"
    try:
        if not _is_bound(sup, q):
            wildcard = Endpoint(ANY4 if q.sock.family == socket.AF_INET else ANY6, 0)
            verdict, error = _bind(sup, q, wildcard)
        local = Endpoint.from_python(q.sock.getsockname())
        target = str(local)
        if not error and _asked(sup, q, local.unmapped(), listen):
            return
        if sup.parts.direct and sup.endings is not None:
            sup.endings.expects(q.sock.family)
        if not error:
            verdict, error = _listen(sup, q, local, backlog)
    except DecidedError as failure:
        error = failure.errno or errno.EIO
        if not failure.decision.allowed:
            verdict = Verdict(failure.decision, "", "deny")
    except OSError as failure:
        error = failure.errno or errno.EIO
    record = sup.record(q, Verb.LISTEN, target, verdict, error)
    # Before the guest knows: all that it accepts may have ended a moment later.
    if sup.endings is not None and record is not None and q.host and not error:
        sup.endings.listens(cookie(q.sock), local.unmapped(), record)
    sup.answer(q, error)


def _listen(sup: Supervisor, q: Question, local: Endpoint, backlog: int) -> tuple[Verdict, int]:
    from xensock.supervisor.supervisor import Verdict

    end = local.unmapped()
    outer = _outer(sup, q)
    if (
        q.host
        and end.host.is_loopback
        and q.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0] == TCP_CLOSE
    ):
        # Bound while it was shared (_bind_shared). On the host's loopback no guest listens.
        _free_inside(sup, q, local)
        sup.move(q, host=False)
    if q.host or outer is not None:
        decision = listen_decision(sup, q, end)
        if not decision.allowed:
            return Verdict(decision, "", "deny"), decision.error
        if outer is None:
            if decision.needs_relay:
                # Bound under another policy: clients would come that nobody judges.
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            _listen_judged(q.sock, local, backlog)
            sup.ports.listens(q.sock, end)
            return Verdict(decision, "direct", "allow"), 0
        again = sup.ports.is_listening(outer)
        # Another backend may refuse: first it, then the guest's own.
        if sup.parts.stacks.default.local:
            reusing.listen(sup.parts.relay, q.sock, backlog, twin=True)
            outer.listen(backlog)
        else:
            outer.listen(backlog)
            reusing.listen(sup.parts.relay, q.sock, backlog, twin=True)
        decision = final(decision, decided(outer))
        if not again:
            sup.ports.listens(outer, end)
            key = cookie(q.sock)
            sup.reserved[key].listening = True
            sup.parts.relay.watch(key, lambda: drop(sup, key))
            opened = sup.accepts(q.tid, q.program, Verdict(decision, _path(sup, decision), "allow"))
            sup.parts.relay.publish(outer, end.port, None, lambda: None, opened=opened)
        _heed(sup, q)
        return Verdict(decision, _path(sup, decision), "allow"), 0
    return _listen_inside(sup, q, end, backlog)


def _listen_inside(
    sup: Supervisor, q: Question, end: Endpoint, backlog: int
) -> tuple[Verdict, int]:
    from xensock.supervisor.supervisor import Verdict

    outers: list[socket.socket] = []
    if cookie(q.sock) in sup.reserved:  # published before
        q.sock.listen(backlog)
        return Verdict(Decision(True, f"--publish {end.port}"), _inward(sup), "allow"), 0
    try:
        for p in sup.parts.publications.of(end.port):
            outers.append(_publish(sup, p))  # noqa: PERF401 - what was made before a failure must be closed
        reusing.listen(sup.parts.relay, q.sock, backlog, twin=False)
    except OSError as failure:
        for outer in outers:
            outer.close()
        if failure.errno == errno.EADDRINUSE and _shown(sup, end.port):
            # Servers have a socket for each family; one of them is enough for the world.
            reusing.listen(sup.parts.relay, q.sock, backlog, twin=False)
            return Verdict(Decision(True, f"--publish {end.port}"), _inward(sup), "allow"), 0
        raise
    published = Verdict(Decision(True, f"--publish {end.port}"), _inward(sup), "allow")
    opened = sup.accepts(q.tid, q.program, published)
    for outer in outers:
        sup.parts.relay.publish(outer, end.port, only_loopback(end), lambda: None, opened=opened)
    if outers:
        key = cookie(q.sock)
        sup.reserved[key] = Outers(outers, end.port, listening=True, inside=True)
        _keep(sup, key, sup.reserved[key])
        sup.parts.relay.watch(key, lambda: drop(sup, key))
        _heed(sup, q)
        return Verdict(Decision(True, f"--publish {end.port}"), _inward(sup), "allow"), 0
    return Verdict(OWN, "guest", "guest"), 0


def _shown(sup: Supervisor, port: int) -> bool:
    """Whether another socket of the guest's is published for its port already."""
    return any(each.listening and each.guest_port == port for each in sup.reserved.values())


def only_loopback(end: Endpoint) -> IPAddress | None:
    return end.host if end.host.is_loopback else None


def _publish(sup: Supervisor, p: Publication) -> socket.socket:
    """The host's listener of a publication: every address of both families, or the one that was named."""
    stack = sup.parts.stacks.default
    dual = p.host is None and socket.has_dualstack_ipv6()
    host = p.host or (ANY6 if dual else ANY4)
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    try:
        return stack.create_server(str(host), p.port, family, dual)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        release_gone(sup)
        return stack.create_server(str(host), p.port, family, dual)
