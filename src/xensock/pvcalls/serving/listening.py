"""BIND, LISTEN, ACCEPT and POLL.

An ACCEPT maps its ring at once and is then parked until a connection comes; several may wait, the
oldest gets the first. POLL is answered when a connection waits that no ACCEPT takes.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol, Verb
from xensock.pvcalls.serving import consulting, joining, marking, moving
from xensock.pvcalls.serving.addresses import endpoint, name_of
from xensock.pvcalls.serving.held import Held, Phase
from xensock.pvcalls.serving.limits import refuse
from xensock.pvcalls.serving.rings import map_ring
from xensock.wire.extensions import Extension

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.wire.requests import Accept, Bind, Listen, Poll

LONGEST_BACKLOG = 0x7FFFFFFF  # listen(2) takes an int; the kernel cuts it to net.core.somaxconn
MOST_JOINED = 4096  # net.core.somaxconn's default
ACCEPTED = Decision(True, "the guest's own listener")


def bind(guest: Guest, call: Call, request: Bind, told: Decision | None = None) -> None:
    """Bind; answered with the address that the socket has now, where names are agreed. `told`: what was decided beside
    the rules."""
    held = guest.held(request.id)
    if held.family not in (socket.AF_INET, socket.AF_INET6):
        raise refuse(errno.EOPNOTSUPP)
    if held.phase not in (Phase.FRESH, Phase.DATAGRAMS):
        raise refuse(errno.EINVAL)  # it has its address
    local = endpoint(held, request.address)
    if _asked(guest, call, held, local, told, lambda told: bind(guest, call, request, told)):
        return
    decision, error = _bind(guest, held, local, told)
    guest.record(call, Verb.BIND, str(local), decision, error)
    if error:
        call.fail(error)
    elif Extension.NAMES in guest.extensions:
        call.send(call.response().with_address(name_of(held.host.getsockname())))
    else:
        call.answer()


def _asked(
    guest: Guest,
    call: Call,
    held: Held,
    local: Endpoint,
    told: Decision | None,
    go_on: Callable[[Decision | None], None],
) -> bool:
    """Whether somebody beside the rules is asked about a stream's local address; the call goes on once it is known."""
    stream = held.kind == socket.SOCK_STREAM and held.phase == Phase.FRESH
    if told is not None or not local.port or not stream or not guest.point.consults(Verb.LISTEN):
        return False
    end = local.unmapped()
    decision = listen_decision(guest, held, local)
    word = consulting.ask(guest, Verb.LISTEN, decision, Protocol.TCP, end)
    if word is not None:
        consulting.park(guest, call, held, word, go_on, lambda: go_on(None))
    return word is not None


def _bind(guest: Guest, held: Held, local: Endpoint, told: Decision | None) -> tuple[Decision, int]:
    decision = told or listen_decision(guest, held, local)
    if not local.port and not decision.allowed:
        decision = Decision(True, "")  # its port is judged once it is known
    held.decided = decision, False
    if not decision.allowed:
        return decision, decision.error
    try:
        guest.backend.ports.bind(held, local)
    except OSError as error:
        return decision, error.errno or errno.EIO
    return decision, 0


def listen_decision(guest: Guest, held: Held, local: Endpoint) -> Decision:
    """Whether the guest may have this local address, to listen or to receive datagrams."""
    only = held.family == socket.AF_INET6 and bool(
        held.host.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    )
    protocol = Protocol.TCP if held.kind == socket.SOCK_STREAM else Protocol.UDP
    return guest.point.listen(protocol, local.unmapped(), only, guest.transport.pid)


def listen(guest: Guest, call: Call, request: Listen, told: Decision | None = None) -> None:
    """Listen; a socket without an address gets a port of the host's choice (listen(2)). `told` as of bind."""
    held = guest.stream(request.id)
    if held.phase not in (Phase.FRESH, Phase.LISTENING) or held.family == socket.AF_UNIX:
        raise refuse(errno.EINVAL)
    if not held.is_bound:
        anywhere = IPv4Address(0) if held.family == socket.AF_INET else IPv6Address(0)
        guest.backend.ports.bind(held, Endpoint(anywhere, 0))
    local = Endpoint.from_python(held.host.getsockname())
    if _asked(guest, call, held, local, told, lambda told: listen(guest, call, request, told)):
        return
    decision = told or listen_decision(guest, held, local)
    held.decided = decision, False
    error = decision.error
    if decision.allowed:
        try:
            if guest.journal is not None:
                marking.mark(held.host)
            held.host.listen(min(request.backlog, LONGEST_BACKLOG))
            held.phase = Phase.LISTENING
            held.backlog = min(request.backlog, MOST_JOINED)
            held.arrived = lambda: pump(held)
            guest.backend.ports.listens(held, local)
            guest.keep(held)
        except OSError as failure:
            error = failure.errno or errno.EIO
    guest.record(call, Verb.LISTEN, str(local), decision, error)
    call.fail(error)


def _listener(guest: Guest, id: int) -> Held:
    held = guest.stream(id)
    if held.phase != Phase.LISTENING:
        raise refuse(errno.EINVAL)
    return held


def accept(guest: Guest, call: Call, request: Accept) -> None:
    """Park until there is a connection, which becomes socket `new_id`."""
    listener = _listener(guest, request.id)
    guest.check_room(request.new_id)
    ring = map_ring(guest, request.ref, request.port)
    promised = Held(
        guest,
        request.new_id,
        listener.family,
        listener.kind,
        listener.protocol,
        None,
        Phase.ACCEPTING,
        ring=ring,
        call=call,
    )

    def cancel(error: int) -> None:
        listener.accepts.remove(promised)
        _failed(guest, promised, error)
        _watch(listener)

    promised.cancel = cancel
    guest.add(promised)
    listener.accepts.append(promised)
    pump(listener)


def poll(guest: Guest, call: Call, request: Poll) -> None:
    """Park until a connection waits."""
    listener = _listener(guest, request.id)
    listener.polls.append(call)
    pump(listener)


def pump(listener: Held) -> None:
    """Serve what is parked at a listener as far as there are connections."""
    if listener.sock is None:
        return  # it was released meanwhile
    while listener.accepts and _take(listener):
        pass
    if listener.polls and not listener.accepts and _waits(listener):
        polls, listener.polls = listener.polls, []
        for call in polls:
            call.answer()
    _watch(listener)


def _take(listener: Held) -> bool:
    """Give one connection to the oldest ACCEPT; whether there was any, or an error to give it."""
    if listener.queue:
        _take_joined(listener)
        return True
    try:
        found = _next(listener)
        if found is None:
            return True
        sock, peer = found
    except BlockingIOError:
        return False
    except ConnectionAbortedError:
        return True  # it was gone before we took it
    except OSError as error:
        promised = listener.accepts.popleft()
        _failed(listener.guest, promised, error.errno or errno.EIO)
        return True
    sock.setblocking(False)
    listener.accepts[0].linger = listener.linger
    _accepted(listener.accepts.popleft(), sock, name_of(peer))
    return True


def _next(listener: Held) -> tuple[socket.socket, tuple[str, int]] | None:
    """The next connection of the host's that the policy admits; None: it did not admit one. Raises OSError."""
    if listener.taken:
        return listener.taken.popleft()
    sock, peer = _accept(listener)
    client = Endpoint.from_python(peer).unmapped()
    decision, word = _judged(listener, client)
    if word is not None:
        _await(listener, sock, peer, word)
        return None
    if _admitted(listener, client, decision):
        return sock, peer
    _reset(sock)
    return None


def _accept(listener: Held) -> tuple[socket.socket, tuple[str, int]]:
    if listener.left:
        sock = listener.left.popleft()
        with suppress(OSError):  # it has ended since
            return sock, sock.getpeername()
        sock.close()
        raise ConnectionAbortedError
    return listener.host.accept()


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, moving.RESET)
    sock.close()


def _judged(listener: Held, client: Endpoint) -> tuple[Decision, Future[Decision] | None]:
    """What the rules say about a client, and whose word is awaited beside them."""
    guest, port = listener.guest, listener.host.getsockname()[1]
    decision = guest.point.accept(client, port)
    where = Endpoint(client.host, port, client.scope)
    return decision, consulting.ask(guest, Verb.ACCEPT, decision, Protocol.TCP, where)


def _admitted(listener: Held, client: Endpoint, decision: Decision) -> bool:
    if not decision.allowed:
        listener.guest.record_refused(Verb.ACCEPT, str(client), decision)
    return decision.allowed


def _await(
    listener: Held, sock: socket.socket, peer: tuple[str, int], word: Future[Decision]
) -> None:
    """A client waits, taken from the kernel's queue, until it is known whether it is admitted."""
    client = Endpoint.from_python(peer).unmapped()

    def known(decision: Decision | None) -> None:
        if listener.guest.gone or listener.guest.sockets.get(listener.id) is not listener:
            _reset(sock)
            return
        if decision is None:
            decision, word = _judged(listener, client)
            if word is not None:
                _await(listener, sock, peer, word)
                return
        if _admitted(listener, client, decision):
            listener.taken.append((sock, peer))
            pump(listener)
        else:
            _reset(sock)

    consulting.then(listener.guest, word, known)


def _take_joined(listener: Held) -> None:
    """Accept a connection that waits in our own queue."""
    client = listener.queue[0].peer.unmapped()
    decision, word = _judged(listener, client)
    if word is not None:  # it came before there were hooks, which are asked about none in memory
        decision = Decision(False, "hooks: it came before they did", errno.EACCES, cacheable=False)
    if not _admitted(listener, client, decision):
        joining.refuse(listener, listener.queue.popleft())
        return
    joined, promised = listener.queue.popleft(), listener.accepts.popleft()
    promised.parent = listener
    try:
        joining.accept(promised, joined)
    except ProcessLookupError:  # both its guests are gone
        listener.accepts.appendleft(promised)
        return
    except OSError as error:
        joining.refuse(listener, joined)
        _failed(listener.guest, promised, error.errno or errno.EIO)
        return
    _answer(promised, joined.peer.sockaddr())


def _accepted(held: Held, sock: socket.socket, peer: bytes) -> None:
    held.sock, held.client = sock, peer
    if held.call is not None:
        held.made = held.call.slot
    try:
        moving.move(held)
    except OSError as error:
        _failed(held.guest, held, error.errno or errno.EIO)
        return
    _answer(held, peer)


def _answer(held: Held, peer: bytes) -> None:
    """A parked ACCEPT has its connection."""
    guest, call = held.guest, held.call
    assert call is not None
    arrived = time.monotonic_ns()
    held.cancel, held.call = None, None
    guest.counters.accepted += 1
    target = str(Endpoint.from_sockaddr(peer))
    guest.record(call, Verb.ACCEPT, target, ACCEPTED, 0, outcome="guest", start=arrived, begun=held)
    response = call.response()
    if Extension.NAMES in guest.extensions:
        response = response.with_address(peer)
    call.send(response)


def _failed(guest: Guest, promised: Held, error: int) -> None:
    call = promised.call
    promised.cancel = None
    moving.forget(guest, promised)
    assert call is not None
    call.fail(error)


def _waits(listener: Held) -> bool:
    """Whether a connection is in a queue."""
    if listener.queue or listener.taken:
        return True
    point = listener.guest.point
    if not point.policy.accepts_judged and not point.consults(Verb.ACCEPT):
        return _readable(listener)
    while _readable(listener):
        # What will be refused must not be told of: nobody could accept it.
        try:
            found = _next(listener)
        except OSError:
            return True
        if found is not None:
            listener.taken.append(found)
            return True
    return False


def _readable(listener: Held) -> bool:
    if listener.left:
        return True
    waiting = select.poll()
    waiting.register(listener.host.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


def _watch(listener: Held) -> None:
    """Have the loop tell of connections exactly while somebody waits for them."""
    wanted = bool(listener.accepts or listener.polls)
    if wanted == listener.watched:
        return
    listener.watched = wanted
    loop = listener.guest.backend.loop
    if wanted:
        loop.add_reader(listener.host.fileno(), pump, listener)
    else:
        loop.remove_reader(listener.host.fileno())


def unpark(listener: Held, error: int) -> None:
    """A listener is being released: answer everything that is parked, reset what waits."""
    for promised in list(listener.accepts):
        if promised.cancel is not None:
            promised.cancel(error)
    polls, listener.polls = listener.polls, []
    for call in polls:
        call.fail(error)
    while listener.queue:
        joining.refuse(listener, listener.queue.popleft())
    while listener.taken:
        listener.taken.popleft()[0].close()
    while listener.left:
        listener.left.popleft().close()
    _watch(listener)
