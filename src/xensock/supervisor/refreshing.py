"""Another policy is in force: what was decided is forgotten, and connections that it forbids end if it says so.

Theory of operation: the core's verdicts and the flows of datagrams are asked about anew. A connection lives in a
socket that the guest holds, whatever carries its bytes; so the guest's own sockets are looked for among the descriptors
of its processes, and one whose peer the policy forbids is shut down for all who hold it.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Verb
from xensock.supervisor.connecting import is_own

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.supervisor.supervisor import Supervisor


def refresh(sup: Supervisor) -> int:
    """Put the policy of `sup.point` in force; how many connections were ended. Any thread may call it."""
    with sup.held.lock:
        # Calls are decided under this lock: what comes later is decided by the policy of now.
        for each in sup.held.supervisors:
            _core.super_flush(each.handle)
    if sup.parts.datagrams is not None:
        sup.parts.datagrams.doubt()
    return _close_forbidden(sup) if sup.point.policy.close_on_reload else 0


def _close_forbidden(sup: Supervisor) -> int:
    ended = 0
    seen: set[int] = set()
    listening: set[int] = set()
    found: list[tuple[int, socket.socket]] = []
    try:
        for pid, sock in _streams(sup, seen):
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                listening.add(sock.getsockname()[1])
                sock.close()
            else:
                found.append((pid, sock))
        for pid, sock in found:
            with suppress(OSError):  # not connected, or ended meanwhile
                ended += _judge(sup, pid, sock, listening)
    finally:
        for _, sock in found:
            sock.close()
    return ended


def _judge(sup: Supervisor, pid: int, sock: socket.socket, listening: set[int]) -> bool:
    """End a connection that the policy forbids."""
    peer = Endpoint.from_python(sock.getpeername()).unmapped()
    local = Endpoint.from_python(sock.getsockname()).unmapped()
    if local.port in listening:
        decision = sup.point.accept(peer, local.port)
        if peer.host.is_loopback and local.host.is_loopback:
            return False  # within the guest
    elif is_own(peer.host):
        return False
    else:
        decision = sup.point.still(peer, pid)
    if decision.allowed or not decision.close_on_reload:
        return False
    sock.shutdown(socket.SHUT_RDWR)
    _record(sup, pid, peer, decision)
    return True


def _record(sup: Supervisor, pid: int, peer: Endpoint, decision: Decision) -> None:
    sup.point.write(
        Verb.CLOSE,
        str(peer),
        decision,
        "deny",
        "",
        0,
        pid=pid,
        program=_comm(pid),
        start=time.monotonic_ns(),
        took=0,
    )


def _streams(sup: Supervisor, seen: set[int]) -> Iterator[tuple[int, socket.socket]]:
    """The guest's stream sockets, each once, with a process that holds it."""
    for pid in processes(sup.parts.guest.pidfd):
        try:
            names = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for name in names:
            try:
                link = os.readlink(f"/proc/{pid}/fd/{name}")
                if not link.startswith("socket:[") or int(link[8:-1]) in seen:
                    continue
                fd = _core.super_getfd(sup.handle, pid, int(name))
            except OSError:
                continue  # closed meanwhile
            seen.add(int(link[8:-1]))
            sock = socket.socket(fileno=fd)
            tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
            if tcp and sock.type == socket.SOCK_STREAM:
                yield pid, sock
            else:
                sock.close()


def processes(pidfd: int) -> list[int]:
    """The processes of the PID namespace of that one (pidfd_open(2)), as this process sees them."""
    try:
        with open(f"/proc/self/fdinfo/{pidfd}") as info:
            pid = next(int(line.split()[1]) for line in info if line.startswith("Pid:"))
        wanted = os.readlink(f"/proc/{pid}/ns/pid")
    except (OSError, StopIteration):
        return []
    found = []
    for name in os.listdir("/proc"):
        with suppress(OSError):
            if name.isdigit() and os.readlink(f"/proc/{name}/ns/pid") == wanted:
                found.append(int(name))
    return found


def _comm(pid: int) -> str:
    """The short name of a program (proc(5), comm); "?" once it is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().rstrip("\n")
    except OSError:
        return "?"
