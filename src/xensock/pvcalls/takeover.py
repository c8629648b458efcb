"""Going on with all that a backend had which was killed: sessions, sockets, and bytes on their way.

`begin` makes everything anew, `end` sets it to work; in between the new backend's own journal takes the place of the
old one, so that at any time one process alone acts by what one journal says.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from xensock.pvcalls.serving import counting, marking, moving, resuming
from xensock.pvcalls.serving.held import Held, Phase
from xensock.transport.base import GrantError, Limits
from xensock.transport.local_back import LocalBackSession

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xensock.pvcalls.backend import Backend
    from xensock.pvcalls.keeping import Kept, KeptRest, KeptSession
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.session import Session
    from xensock.transport.local_back import Said

LOST = "the backend that had it was killed, and it cannot be served on"
log = logging.getLogger("xensock.backend")


class Takeover:
    """`descriptors`: what the old numbers are here;
    they are taken."""

    def __init__(
        self,
        backend: Backend,
        descriptors: dict[int, int],
    ) -> None:
        self._backend = backend
        self._here = descriptors
        self._sessions: list[Session] = []
        self._lost: list[Session] = []
        self._dead: list[tuple[Guest, tuple[int, int] | None, socket.socket | None]] = []
        self._rests: list[tuple[int, socket.socket, KeptRest, int]] = []

    def begin(self, kept: Kept, strays: Iterable[int]) -> None:
        """Make everything anew. `strays`: sockets that the journal does not know, which are taken."""
        known = set()
        try:
            for session in kept.sessions.values():
                try:
                    self._session(session)
                except Exception:
                    log.exception("a guest of the backend before cannot be served on")
            for held in self._held():
                if held.sock is not None:
                    known.add(counting.cookie(held.sock))
            for rest in reversed(kept.rests.values()):  # of one socket the last counts
                self._rest(rest, known)
            for fd in strays:
                self._stray(fd, known)
        finally:
            for fd in self._here.values():
                os.close(fd)
            self._here.clear()

    def give_up(self) -> None:
        """No guest is served on: each is told so at the end."""
        while self._sessions:
            self._lose(self._sessions.pop())

    def _lose(self, session: Session) -> None:
        """Nobody shall see it before the end: until then another can still take over."""
        session.lost = True
        self._lost.append(session)

    def end(self) -> None:
        """Set it to work."""
        for session in self._lost:
            session.expel(LOST)
        for guest, ring, sock in self._dead:
            with suppress(OSError, GrantError):
                resuming.lose(guest, ring, sock)
        for session in self._sessions:
            try:
                session.run_on()
            except Exception:
                log.exception("a guest of the backend before cannot be served on")
                session.expel(LOST)
        for token, sock, rest, memory in self._rests:
            try:
                resuming.deliver(self._backend, sock, rest, memory)
            except OSError as error:
                log.warning("bytes of a guest that was served before are lost: %s", error)
            del self._backend.rests[token]
            if self._backend.journal is not None:
                self._backend.journal.note("rested", token)

    def _held(self) -> list[Held]:
        guests = [session.guest for session in self._sessions]
        return [held for guest in guests if guest for held in guest.sockets.values()]

    def _session(self, kept: KeptSession) -> None:
        sock = socket.socket(fileno=self._here.pop(kept.fd))
        sock.setblocking(False)
        said: Said = []
        for packet, fds in kept.said:
            if all(fd in self._here for fd in fds):
                said.append((packet, [self._here.pop(fd) for fd in fds]))
        transport = LocalBackSession.go_on(sock, kept.pid, kept.uid, said, kept.last, Limits())
        session = self._backend.admit(transport)
        try:
            session.go_on(kept)
            self._sockets(session, kept)
        except Exception:
            self._lose(session)
            raise
        self._sessions.append(session)

    def _sockets(self, session: Session, kept: KeptSession) -> None:
        guest = session.guest
        if guest is None:
            return
        self._backend.keep_names(guest, self._here.pop(kept.names, -1))
        for id, each in kept.held.items():
            fd = self._here.pop(each["fd"], -1)
            if fd < 0 and each["fd"] >= 0:
                self._dead.append((guest, each["ring"], None))
                continue
            sock = socket.socket(fileno=fd) if fd >= 0 else None
            if sock is not None:
                sock.setblocking(False)
            try:
                resuming.restore(guest, id, each, sock)
            except Exception as error:
                log.warning("%s loses socket %d: %r", session.name, id, error)
                self._dead.append((guest, each.get("ring"), sock.dup() if sock else None))
                if id in guest.sockets:
                    moving.forget(guest, guest.sockets[id])
                elif sock is not None:
                    sock.close()

    def _rest(self, rest: KeptRest, known: set[int]) -> None:
        if rest.fd not in self._here or rest.memory not in self._here:
            return
        with suppress(OSError):
            sock = socket.socket(fileno=os.dup(self._here[rest.fd]))
            there = counting.cookie(sock)
            # The number may be another's by now, and what counts for a socket that was not released yet is its ring.
            if there != rest.cookie or there in known:
                sock.close()
                return
            known.add(there)
            memory = os.dup(self._here[rest.memory])
            token = -1 - len(self._rests)  # none of the mover's
            self._rests.append((token, sock, rest, memory))
            words = sock.fileno(), there, memory, rest.length, rest.begin, rest.reset
            self._backend.rests[token] = words

    def _stray(self, fd: int, known: set[int]) -> None:
        """A connection that was taken from a listener's queue, and of which nobody knew yet."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            return
        try:
            listener = self._listener_of(sock, known)
        except (OSError, struct.error):
            listener = None
        if listener is None:
            sock.close()
            return
        known.add(counting.cookie(sock))
        sock.setblocking(False)
        listener.left.append(sock)

    def _listener_of(self, sock: socket.socket, known: set[int]) -> Held | None:
        if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        if (
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            or counting.cookie(sock) in known
        ):
            return None
        now = counting.counts(sock)
        linger = sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        fresh = now.taken == 0 and now.given == (now.state in counting.HAS_END)
        open_ = now.state in (counting.State.ESTABLISHED, counting.State.CLOSE_WAIT)
        if not fresh or not open_ or struct.unpack("ii", linger)[0]:
            return None
        came_from = marking.origin(sock)
        for held in self._held():
            if held.phase == Phase.LISTENING and counting.cookie(held.host) == came_from:
                return held
        return None
