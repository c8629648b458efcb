"""The control socket of a `xensock run`: what `xensock ps`, `ss`, `events` and `kill` ask.

The requests and answers are those of the daemon's control API (docs/reference/control.md). The socket lies in the
user's runtime directory, which is covered in every guest; whoever comes from another network namespace, as guests do,
is turned away all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import socket
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from xensock import __version__
from xensock.backend import places
from xensock.backend.control import CLIENTS, LONGEST, SCHEMA, UCRED, RequestError, denials_of
from xensock.backend.control import failed as failure
from xensock.backend.control import line as line_of
from xensock.supervisor import looking, tcpinfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.backend.serving import Serving
    from xensock.calls.record import Record
    from xensock.observe.tap import Tap

EVENTS = 4096  # records that wait for one watcher
PATIENCE = 2.0  # seconds for a client to take an answer
LAST_S = 0.5  # for a watcher to take the last records
GUEST = 1  # the number of the only one


class Watch:
    """Serves the control socket of one guest from now on until `close`. Raises OSError."""

    def __init__(self, name: str, serving: Serving, tap: Tap | None) -> None:
        self._name = name
        self._serving = serving
        self._tap = tap
        self._since = time.time()
        self._closed = threading.Event()
        self._clients = threading.BoundedSemaphore(CLIENTS)
        self._ends: dict[threading.Thread, socket.socket] = {}
        self._watchers: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._answering = threading.Lock()  # one at a time
        self._path = places.run_socket()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(self._path)
            os.chmod(self._path, 0o600)
            self._listener.listen(CLIENTS)
        except OSError:
            self._listener.close()
            raise
        self._commands: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "version": lambda request: {"xensock": __version__, "pid": os.getpid()},
            "guests": lambda request: {"guests": [self._guest()]},
            "sockets": lambda request: {"sockets": self._sockets()},
            "denials": lambda request: denials_of(self._tap),
            "disconnect": self._kill,
            "close": self._close_socket,
        }
        threading.Thread(target=self._accept, name="xs-control", daemon=True).start()

    def close(self) -> None:
        """Remove the socket, and end every client once it has its answer, every watcher once it has what happened.

        Clients that do not read get PATIENCE seconds, watchers LAST_S.
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        with self._lock:
            self._closed.set()
            clients = dict(self._ends)
        for end in (self._listener, *clients.values()):
            with contextlib.suppress(OSError):
                # What was asked before is still read.
                end.shutdown(socket.SHUT_RD)
        start = time.monotonic()
        for thread in sorted(clients, key=self._watchers.__contains__, reverse=True):
            until = start + (LAST_S if thread in self._watchers else looking.KILL_S + PATIENCE)
            thread.join(max(0.0, until - time.monotonic()))
            with self._lock, contextlib.suppress(KeyError, OSError):
                self._ends[thread].shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with self._listener:
            while not self._closed.is_set():
                try:
                    client, _ = self._listener.accept()
                except OSError:
                    return
                if not may_ask(client) or not self._clients.acquire(blocking=False):
                    client.close()
                    continue
                thread = threading.Thread(
                    target=self._client, args=(client,), name="xs-control-client", daemon=True
                )
                with self._lock:
                    if self._closed.is_set():
                        client.close()
                        return
                    try:
                        thread.start()
                    except RuntimeError:  # no more threads for this user (RLIMIT_NPROC, pids.max)
                        client.close()
                        self._clients.release()
                        continue
                    self._ends[thread] = client

    def _client(self, client: socket.socket) -> None:
        try:
            with client.makefile("rb") as lines:
                while request := lines.readline(LONGEST):
                    if not self._answer(client, request) or self._closed.is_set():
                        return
        except OSError:
            pass  # it left
        finally:
            with self._lock:
                del self._ends[threading.current_thread()]
                self._watchers.discard(threading.current_thread())
                client.close()
            self._clients.release()

    def _answer(self, client: socket.socket, raw: bytes) -> bool:
        """Answer a request; whether there may be another one."""
        try:
            request = json.loads(raw)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            client.sendall(failure(None, "not-json", "a request is a JSON object on one line"))
            return raw.endswith(b"\n")
        number, name = request.get("id"), request.get("command")
        if name == "events":
            self._events(client, number)
            return False
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join((*self._commands, "events"))
            client.sendall(failure(number, "unknown-command", f"commands are {known}"))
            return True
        with self._answering:
            try:
                answer = line_of({"id": number, "schema": SCHEMA, "ok": True, **command(request)})
            except RequestError as error:
                answer = failure(number, error.code, str(error))
            except OSError as error:
                answer = failure(number, "failed", error.strerror or str(error))
            # One that does not read its answers must not hold the others, nor the end of the run.
            client.settimeout(PATIENCE)
            client.sendall(answer)
            client.settimeout(None)
        return True

    # --- commands

    def _guest(self) -> dict[str, Any]:
        pids = looking.processes(self._serving.parts.guest)
        return {
            "guest": GUEST,
            "name": self._name,
            "pid": os.getpid(),
            "uid": os.geteuid(),
            "since": self._since,
            "state": "connected",
            "processes": len(pids),
            "sockets": len(self._sockets()),
        }

    def _sockets(self) -> list[dict[str, Any]]:
        return [_told(one) for one in looking.sockets(self._serving.parts)]

    def _kill(self, request: dict[str, Any]) -> dict[str, Any]:
        _check(request)
        return {"processes": looking.kill(self._serving.parts.guest)}

    def _close_socket(self, request: dict[str, Any]) -> dict[str, Any]:
        _check(request)
        wanted = request.get("socket")
        for one in looking.sockets(self._serving.parts):
            if one.seen.cookie == wanted:
                looking.reset(one)
                return {}
        raise RequestError("no-such-socket", f"the guest has no socket {wanted!r}")

    def _events(self, client: socket.socket, number: Any) -> None:
        """Send each record as it comes, until the client leaves. One that does not keep up misses some, and is told."""
        waiting: queue.SimpleQueue[Record] = queue.SimpleQueue()
        lost = 0

        def take(record: Record) -> None:
            nonlocal lost
            if waiting.qsize() < EVENTS:
                waiting.put(record)
            else:
                lost += 1

        client.sendall(line_of({"id": number, "schema": SCHEMA, "ok": True}))
        if self._tap is None:
            return
        with self._lock:
            self._watchers.add(threading.current_thread())
        self._tap.add(take, ends=True)
        left = select.poll()
        left.register(client, select.POLLRDHUP | select.POLLHUP)
        try:
            while not self._closed.is_set() or not waiting.empty():
                try:
                    record = waiting.get(timeout=0.1)
                except queue.Empty:
                    if left.poll(0):
                        return
                    continue
                missed, lost = lost, 0
                if missed:
                    client.sendall(line_of({"schema": SCHEMA, "dropped": missed}))
                client.sendall(line_of({"schema": SCHEMA, "event": asdict(record)}))
        finally:
            self._tap.remove(take)


def _check(request: dict[str, Any]) -> None:
    if request.get("guest") != GUEST:
        raise RequestError("no-such-guest", f"no guest has the number {request.get('guest')!r}")


def _told(one: looking.Socket) -> dict[str, Any]:
    seen = one.seen
    sent, received, _ = tcpinfo.counted(seen.info, False)
    connected = bool(seen.remote[1])
    state = tcpinfo.STATES[seen.state] if seen.state < len(tcpinfo.STATES) else "?"
    return {
        "guest": GUEST,
        "id": seen.cookie,
        "family": seen.family,
        "protocol": one.protocol,
        "state": state if one.protocol == "tcp" else "datagrams",
        "local": str(seen.end(seen.local)),
        "peer": str(seen.end(seen.remote)) if connected else None,
        "name": one.name,
        "datapath": one.datapath,
        "sent": sent if connected else None,
        "received": received if connected else None,
        "rtt": seen.rtt if one.datapath == "direct" and connected else None,
        "pid": one.holder.pid,
        "program": one.program,
    }


def may_ask(client: socket.socket) -> bool:
    """Whether the peer is of our user, or root, and of our network namespace, in which no guest is."""
    pid, uid, _ = UCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size))
    if uid not in (0, os.geteuid()):
        return False
    try:
        return os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")
    except OSError:
        return False
