"""Sockets of the host's file system, by rule (extension unix): a path that no rule names is refused."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

from xensock.calls.call import Verb
from xensock.pvcalls.serving import attempt
from xensock.pvcalls.serving.limits import refuse
from xensock.transport.base import GrantError

if TYPE_CHECKING:
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held
    from xensock.wire.requests import Connect


def connect(guest: Guest, call: Call, held: Held, request: Connect) -> None:
    """Connect to a path of the host, where a rule allows it."""
    path = path_of(guest, request)
    decision = guest.point.policy.unix(path)
    held.decided = decision, False
    target = f"unix:{path}"
    if not decision.allowed:
        guest.record(call, Verb.CONNECT, target, decision, decision.error)
        call.fail(decision.error)
        return

    def done(error: int) -> None:
        guest.record(call, Verb.CONNECT, target, decision, error, begun=held)

    def start(sock: socket.socket) -> int:
        try:
            sock.connect(path)
        except BlockingIOError:
            return errno.EAGAIN
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    way = attempt.Way(start, waits=True)  # a unix socket says EAGAIN instead of waiting
    attempt.begin(guest, call, held, request, way, done)


def path_of(guest: Guest, request: Connect) -> str:
    """The absolute path in a request's page. Raises OSError: EINVAL for what is none, ENOENT for
    names that are not in the file system (abstract ones), ENAMETOOLONG."""
    page = request.page
    if page is None or page.family != socket.AF_UNIX:
        raise refuse(errno.EINVAL)
    try:
        with guest.transport.map((page.ref,)) as view:
            raw = bytes(view[: page.length])
    except GrantError as error:
        raise refuse(error.errno) from error
    if len(raw) < 3 or int.from_bytes(raw[:2], "little") != socket.AF_UNIX:
        raise refuse(errno.EINVAL)
    name = raw[2:].split(b"\0", 1)[0]
    if not name.startswith(b"/"):
        raise refuse(errno.ENOENT)
    path = os.fsdecode(name)
    if os.path.normpath(path) != path:
        # A rule names a path as it is; other spellings of it are not looked for.
        raise refuse(errno.ENOENT)
    return path
