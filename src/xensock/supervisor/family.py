"""AF_XENSOCK in a guest: sockets that are AF_INET6 in the network that the data path uses.

With `--family own` they are the only ones that leave the guest; AF_INET and AF_INET6 stay in its own network, where
the calls are carried out as they are. What the relay has there for others is nobody's listener.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.calls.call import Verb
from xensock.calls.family import AF_XENSOCK
from xensock.supervisor import binding, limits, privileged
from xensock.supervisor.connecting import OWN, describe
from xensock.supervisor.diag import cookie

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor

TYPE = 0xF
MOST = 100_000  # sockets that are remembered at most


def make(sup: Supervisor, q: Question) -> None:
    """socket(AF_XENSOCK, …); and of another family, where the guest has perhaps as many as it may have."""
    if q.args[0] & 0xFFFFFFFF != AF_XENSOCK:
        limits.make(sup, q)
        return
    kind, protocol = q.args[1] & 0xFFFFFFFF, q.args[2] & 0xFFFFFFFF
    stream = kind & TYPE == socket.SOCK_STREAM
    maker = socket.socket if stream and sup.parts.direct else sup.parts.guest.socket
    try:
        made = maker(socket.AF_INET6, kind & TYPE, protocol)
    except OSError as error:
        sup.answer(q, error.errno or errno.EIO)
        return
    with made:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        os.set_blocking(made.fileno(), not kind & socket.SOCK_NONBLOCK)
        if sup.parts.own_family:
            if len(sup.own) >= MOST:
                sup.own.clear()  # those it forgets get no further than the guest: no decision means no
            sup.own.add(cookie(made))
        number = _core.super_addfd(sup.handle, q.id, made.fileno(), -1, kind & socket.SOCK_CLOEXEC)
    if number < 0 and number != -errno.ENOENT:
        sup.answer(q, -number)


def stays(sup: Supervisor, q: Question) -> bool:
    """Whether this socket's calls concern the guest's own network alone."""
    return sup.parts.own_family and cookie(q.sock) not in sup.own


def inside(sup: Supervisor, q: Question) -> None:
    """Carry out a call in the guest's own network."""
    calls: dict[int, Callable[[Supervisor, Question], None]] = {
        _core.SYS["connect"]: _connect,
        _core.SYS["bind"]: _bind,
        _core.SYS["listen"]: _listen,
    }
    calls[q.nr](sup, q)


def _connect(sup: Supervisor, q: Question) -> None:
    from xensock.supervisor.supervisor import Verdict

    end = q.endpoint()
    if end is not None and q.sock.type & TYPE == socket.SOCK_STREAM:
        found = sup.guest_diag.listener(end.unmapped().host, end.port)
        if found is not None and sup.parts.relay.stands_for(found):
            sup.answer(q, errno.ECONNREFUSED)
            return
    sup.run_connect(q, Verdict(OWN, "guest", "guest"))


def _bind(sup: Supervisor, q: Question) -> None:
    local = binding.local_of(q)
    if local is None:
        _told(sup, q, Verb.BIND, describe(q.addr), binding.wrong(q))
    elif local.port > 0 and not privileged.may_bind(sup, q.tid, local.port):
        _told(sup, q, Verb.BIND, str(local), errno.EACCES)
    else:
        where = local.as_python()
        _told(sup, q, Verb.BIND, str(local), _tried(lambda: q.sock.bind(where)))


def _listen(sup: Supervisor, q: Question) -> None:
    backlog = q.args[1] & 0xFFFFFFFF
    error = _tried(lambda: q.sock.listen(min(backlog, 0x7FFFFFFF)))
    _told(sup, q, Verb.LISTEN, str(Endpoint.from_python(q.sock.getsockname())), error)


def _tried(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def _told(sup: Supervisor, q: Question, verb: Verb, target: str, error: int) -> None:
    from xensock.supervisor.supervisor import Verdict

    sup.answer(q, error)
    sup.record(q, verb, target, Verdict(OWN, "guest", "guest"), error)
