"""The control API of a backend: requests and answers as lines of JSON on a unix socket.

    {"id": 1, "command": "guests"}
    {"id": 1, "schema": 1, "ok": true, "guests": [...]}

The format is docs/reference/control.md. Whoever may open the socket may use it: its file is the user's own
(0600), and the peer's user id must be the backend's, root's, or one that was admitted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import stat
import struct
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xensock import __version__, _core
from xensock.backend import systemd
from xensock.backend.holder import ask_to_be_replaced
from xensock.backend.store import Store
from xensock.pvcalls.serving.addresses import own_end, peer_end
from xensock.pvcalls.serving.held import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from xensock.backend.daemon import Daemon
    from xensock.calls.address import Endpoint
    from xensock.calls.record import Record
    from xensock.observe.tap import Tap
    from xensock.pvcalls.serving.held import Held
    from xensock.pvcalls.serving.session import Session

SCHEMA = 1
LISTENER = "control"  # in the store
LONGEST = 64 * 1024  # bytes of a request
CLIENTS = 16
PATIENCE = 2.0  # seconds for a client to take an answer while the backend ends
LOOK = 0.2  # seconds between looks whether a watcher has left
EVENTS = 4096  # records that wait for one watcher
NOBODY = struct.pack("=H14x", socket.AF_UNSPEC)  # connect(2) to that ends a connection with a reset
log = logging.getLogger("xensock.backend")
UCRED = struct.Struct("=iii")


class RequestError(Exception):
    """A request that cannot be carried out: an error's code and what a person reads."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Control:
    """Serves the control socket of a daemon."""

    def __init__(self, daemon: Daemon, users: tuple[int, ...] = ()) -> None:
        self._daemon = daemon
        self._users = {os.geteuid(), 0, *users}
        self._server: asyncio.Server | None = None
        self._store = Store()
        self._path = ""
        self._clients: set[asyncio.Task[None]] = set()
        self._idle: set[asyncio.Task[None]] = set()  # those that wait for a request, or for events
        self._closing = False
        self._commands: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "version": self._version,
            "guests": self._guests,
            "sockets": self._sockets,
            "counters": self._counters,
            "denials": self._denials,
            "disconnect": self._disconnect,
            "reload": self._reload,
            "stop": self._stop,
            "close": self._close_socket,
        }

    async def listen(self, path: str) -> None:
        """Listen at a path; a socket that a dead backend left there is replaced.

        Raises OSError (EADDRINUSE: somebody listens there).
        """
        # With a holder it is kept: the next backend is there before this one has ended.
        sock = systemd.socket_at(path, socket.SOCK_STREAM)
        if sock is None:
            sock = listening_socket(path)
            if self._daemon.held:
                self._store.keep(LISTENER, sock.fileno())
        self._path = path
        self._server = await asyncio.start_unix_server(self._client, sock=sock, limit=LONGEST)

    async def close(self) -> None:
        """Stop listening, end every client once it has its answer, and remove the socket's file.

        Clients that do not read get PATIENCE seconds.
        """
        if self._server is None:
            return
        self._store.drop(LISTENER)
        self._store.close()
        self._server.close()
        self._closing = True
        for task in self._idle:
            task.cancel()
        if self._clients:
            await asyncio.wait(self._clients, timeout=PATIENCE)
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()
        _remove(self._path)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        writer.transport.set_write_buffer_limits(high=0)  # drained: it is the kernel's
        try:
            peer = writer.get_extra_info("socket")
            raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
            if UCRED.unpack(raw)[1] in self._users and len(self._clients) <= CLIENTS:
                await self._requests(reader, writer)
        except (OSError, asyncio.CancelledError) as error:
            log.debug("a control client ended: %s", error)
        finally:
            self._clients.discard(task)
            self._idle.discard(task)
            writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        while not self._closing:
            self._idle.add(task)
            try:
                raw = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                answer = failed(None, "too-long", f"a request has at most {LONGEST} bytes")
                writer.write(answer)
                await writer.drain()
                return
            request = _request(raw)
            if request is not None and request.get("command") == "events":
                await self._follow(request, reader, writer)
                return
            self._idle.discard(task)
            if request is None:
                writer.write(failed(None, "not-json", "a request is a JSON object on one line"))
            elif request.get("command") == "upgrade":
                writer.write(await self._upgraded(request))
            else:
                writer.write(self._answer(request))
            await writer.drain()

    async def _upgraded(self, request: dict[str, Any]) -> bytes:
        """Have a new backend take over: then this one is gone, and there is no answer. Else why not."""
        number, why = request.get("id"), self._daemon.not_replaced()
        if why:
            return failed(number, "impossible", why)
        try:
            outcome = ask_to_be_replaced()
            with os.fdopen(outcome, "rb") as pipe:
                told = await asyncio.to_thread(pipe.read)
        except OSError as error:
            return failed(number, "failed", error.strerror or str(error))
        return failed(number, "failed", told.decode(errors="replace") or "the holder is gone")

    async def _follow(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Send events until the client leaves."""
        tap = self._daemon.tap
        loop, waiting = asyncio.get_running_loop(), asyncio.Queue[Any]()
        lost = 0

        def take(record: Record) -> None:
            nonlocal lost
            if waiting.qsize() < EVENTS:
                loop.call_soon_threadsafe(waiting.put_nowait, record)
            else:
                lost += 1

        writer.write(line({"id": request.get("id"), "schema": SCHEMA, "ok": True}))
        if tap is None:
            return
        tap.add(take, ends=True)
        try:
            while not reader.at_eof():
                await writer.drain()
                try:
                    async with asyncio.timeout(LOOK):
                        record = await waiting.get()
                except TimeoutError:
                    continue
                missed, lost = lost, 0
                if missed:
                    writer.write(line({"schema": SCHEMA, "dropped": missed}))
                writer.write(line({"schema": SCHEMA, "event": asdict(record)}))
        finally:
            tap.remove(take)

    def _answer(self, request: dict[str, Any]) -> bytes:
        """The answer to one request, as a line."""
        number = request.get("id")
        name = request.get("command")
        command = self._commands.get(name) if isinstance(name, str) else None
        if command is None:
            known = ", ".join(self._commands)
            return failed(number, "unknown-command", f"commands are {known}")
        try:
            return line({"id": number, "schema": SCHEMA, "ok": True, **command(request)})
        except RequestError as error:
            return failed(number, error.code, str(error))

    # --- commands

    def _version(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"xensock": __version__, "protocol": "pvcalls 1", "pid": os.getpid()}

    def _guests(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"guests": [_guest(one) for one in self._daemon.backend.sessions.values()]}

    def _sockets(self, request: dict[str, Any]) -> dict[str, Any]:
        sessions = self._daemon.backend.sessions.values()
        if "guest" in request:
            sessions = [self._named(request)]  # type: ignore[assignment]
        return {
            "sockets": [
                {"guest": session.number, **_socket(held)}
                for session in sessions
                if session.guest is not None
                for held in session.guest.sockets.values()
            ]
        }

    def _counters(self, request: dict[str, Any]) -> dict[str, Any]:
        backend = self._daemon.backend
        if "guest" not in request:
            return {"counters": asdict(backend.counters())}
        guest = self._named(request).guest
        return {"counters": asdict(backend.counters(guest)) if guest is not None else {}}

    def _denials(self, request: dict[str, Any]) -> dict[str, Any]:
        return denials_of(
            self._daemon.tap, self._named(request).name if "guest" in request else None
        )

    def _disconnect(self, request: dict[str, Any]) -> dict[str, Any]:
        session = self._named(request)
        session.expel("the administrator disconnected it")
        return {}

    def _reload(self, request: dict[str, Any]) -> dict[str, Any]:
        why = self._daemon.reload()
        if why:
            raise RequestError("not-loaded", why)
        return {"rules": len(self._daemon.current.policy.entries)}

    def _close_socket(self, request: dict[str, Any]) -> dict[str, Any]:
        """Reset a connection: both ends see that."""
        guest = self._named(request).guest
        number = request.get("socket")
        held = guest.sockets.get(number) if guest is not None and isinstance(number, int) else None
        if held is None:
            raise RequestError("no-such-socket", f"the guest has no socket {number!r}")
        if held.phase != Phase.CONNECTED or held.sock is None or held.joined is not None:
            raise RequestError("impossible", "only connections to other hosts can be ended")
        error = _core.connect_start(held.sock.fileno(), NOBODY, 0)
        if error:
            raise RequestError("failed", os.strerror(error))
        return {}

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        self._daemon.stop("the administrator stopped the backend")
        return {}

    def _named(self, request: dict[str, Any]) -> Session:
        """The session that `guest`, a number, means."""
        number = request.get("guest")
        session = self._daemon.backend.sessions.get(number) if isinstance(number, int) else None
        if session is None:
            raise RequestError("no-such-guest", f"no guest has the number {number!r}")
        return session


def _request(raw: bytes) -> dict[str, Any] | None:
    """A request; None for what is none."""
    try:
        request = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return request if isinstance(request, dict) else None


def listening_socket(path: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A unix socket that listens at a path, its file for its user alone. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        with socket.socket(socket.AF_UNIX, kind) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                if stat.S_ISSOCK(Path(path).stat().st_mode):
                    _remove(path)  # a backend that died left it
            except FileNotFoundError:
                pass
        # Between bind and chmod nobody may connect yet: it does not listen.
        sock.bind(path)
        Path(path).chmod(0o600)
        sock.listen(CLIENTS)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        error.filename = path
        raise
    return sock


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


def _guest(session: Session) -> dict[str, Any]:
    guest, transport = session.guest, session.transport
    return {
        "guest": session.number,
        "name": session.name,
        "pid": transport.pid,
        "uid": transport.uid,
        "since": session.since,
        "state": session.state.name.lower(),
        "extensions": sorted(guest.extensions) if guest is not None else [],
        "sockets": len(guest.sockets) if guest is not None else 0,
        "pages": guest.pages if guest is not None else 0,
    }


def _socket(held: Held) -> dict[str, Any]:
    return {
        "id": held.id,
        "family": held.family,
        "type": held.kind,
        "protocol": held.protocol,
        "state": held.phase.name.lower(),
        "local": _name(held, own_end),
        "peer": _name(held, peer_end),
    }


def _name(held: Held, which: Callable[[Held], Endpoint | None]) -> str | None:
    if held.sock is None and held.joined is None:
        return None
    try:
        end = which(held)
    except OSError:
        return None
    return str(end) if end is not None else None


def denials_of(tap: Tap | None, guest: str | None = None) -> dict[str, Any]:
    """The answer to `denials`: of the guests of that name, or of all."""
    if tap is None:
        return {"denials": []}
    return {"denials": [asdict(each) for each in tap.denials.last(guest)]}


def failed(number: Any, code: str, message: str) -> bytes:
    """The answer to a request that cannot be carried out."""
    error = {"code": code, "message": message}
    return line({"id": number, "schema": SCHEMA, "ok": False, "error": error})


def line(answer: dict[str, Any]) -> bytes:
    """An answer as it is sent: ASCII, so that what guests call themselves cannot steer a terminal."""
    return json.dumps(answer).encode() + b"\n"
