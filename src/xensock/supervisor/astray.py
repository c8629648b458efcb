"""Sockets of the host's network in a guest that has none: somebody passed them in (unix(7), SCM_RIGHTS).

Another guest may hold such sockets and hand one to a guest whose calls another backend decides, or whose rules allow
less. What is connected is that other guest's doing, which could as well carry the bytes itself. Anything else is of
use only with calls that are judged here, as those of a socket of the guest's own.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.call import Decision, Verb
from xensock.supervisor.connecting import TCP_CLOSE
from xensock.supervisor.diag import cookie

if TYPE_CHECKING:
    from xensock.supervisor.question import Question
    from xensock.supervisor.supervisor import Supervisor

WHY = "the socket is of the host's network and was passed in"


def is_astray(sup: Supervisor, q: Question) -> bool:
    """Whether the guest cannot have this socket from us."""
    given = sup.parts.direct and (not sup.parts.own_family or cookie(q.sock) in sup.own)
    return q.host and not given


def bring_home(sup: Supervisor, q: Question) -> None:
    """Put a socket of the guest's network in its place, for which the call is then judged; refuse where its state would
    be lost."""
    from xensock.supervisor.supervisor import Verdict

    try:
        if q.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0] != TCP_CLOSE:
            raise PermissionError(errno.EPERM, WHY)
        sup.move(q, host=False)
    except OSError as error:
        number = error.errno or errno.EIO
        verbs = {_core.SYS["bind"]: Verb.BIND, _core.SYS["listen"]: Verb.LISTEN}
        verdict = Verdict(Decision(False, WHY, number), "", "deny")
        verb, target = verbs.get(q.nr, Verb.CONNECT), sup.target(q)
        sup.answer(q, number)
        sup.record(q, verb, target, verdict, number)
        return
    sup.handler(q)(sup, q)
