"""The relay data path: a guest's own TCP socket ends at the backend, inside the guest's network namespace.

Every address is local there (`ip route add local default dev lo`), so the backend can stand for any destination and
dial the guest's listeners from any client's address. See docs/explanation/relay.md.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xensock import _core
from xensock.loop import IN, Loop
from xensock.supervisor.relay_client import Client, Hold
from xensock.supervisor.relay_ends import reset
from xensock.supervisor.relay_server import Opened, Server
from xensock.supervisor.verifying import Check, Verifier

if TYPE_CHECKING:
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

    from xensock.calls.address import Endpoint, IPAddress
    from xensock.policy.grants import Grant
    from xensock.supervisor.carried import Asked
    from xensock.supervisor.relay_wire import MakeSocket

LAST_ENDS_S = 2.0

# Called once on the relay's thread: bytes the guest sent, bytes it received, errno (0 after an orderly end).
Ended = Callable[[int, int, int], None]


@dataclass(slots=True, eq=False)
class Terms:
    """What a rule says of a connection beside its way: called at its end, as `Ended`.

    check   what its first bytes must be
    grant   what it may have of a limit; it keeps it until it has ended, or is dropped
    """

    ended: Ended | None = None
    check: Check | None = None
    grant: Grant | None = None

    def __call__(self, sent: int, received: int, error: int) -> None:
        if self.grant is not None:
            self.grant.release()
        if self.ended is not None:
            self.ended(sent, received, error)


class Relay:
    """The connections of one guest. Methods may be called from any thread; none waits for the network.

    `make_socket(family, type, protocol)` makes a socket in the guest's network namespace, over which this process
    holds CAP_NET_ADMIN and CAP_NET_RAW. `far_socket` makes those that dial destinations, by default in this
    process's own namespace. Raises OSError when threads or descriptors are short.
    """

    def __init__(self, make_socket: MakeSocket, far_socket: MakeSocket = socket.socket) -> None:
        self._mover = _core.mover_open(min(os.cpu_count() or 1, 4))
        self._lock = threading.Lock()  # of _ended
        self._ended: dict[int, Ended] = {}
        self._closed = False
        self._loop = Loop("xs-relay")
        self._client = Client(self._loop, make_socket, far_socket, self._join)
        self._server = Server(self._loop, make_socket, self._join)
        self._verifier = Verifier(self._loop)
        self._loop.add(_core.mover_fd(self._mover), IN, lambda _: self._fetch_ended())

    def connect(
        self,
        guest: socket.socket,
        dest: Endpoint,
        dial: Endpoint | str | None = None,
        ended: Ended | None = None,
        far: socket.socket | None = None,
        far_socket: MakeSocket | None = None,
        begun: int | None = None,
    ) -> int:
        """Carry out connect(2) of the guest's own socket, of which `guest` is a duplicate the caller closes afterwards.

        Returns 0, or an errno as connect(2). EINPROGRESS: under way; the guest's own file tells the outcome as
        natively (writable, SO_ERROR), whether it is blocking or not. A non-blocking file gets EINPROGRESS even when
        the far side answered at once, as natively.
        `dial`: where to connect instead of `dest`, an endpoint or the path of a unix socket; the guest sees `dest` all
        the same. `far`: the socket to dial with, taken over (one that was bound for the guest);
        `far_socket`: who makes it otherwise. `begun`: what `begin` said of `far`. `ended` may be the rule's `Terms`.
        """
        return self._client.connect(guest, dest, dial, ended, far, far_socket, begun)

    def begin(self, asked: Asked, far: socket.socket, to: Endpoint | str) -> int:
        """Have `far` dial, told what the guest's own socket was (`asked_of`), without waiting for the outcome: the
        errno of connect(2). For those whose `far` may be slow to answer all the same. Raises OSError."""
        return self._client.begin(asked, far, to)

    def promise(
        self, guest: socket.socket, dest: Endpoint, gave_up: Callable[[], None]
    ) -> Hold | int:
        """As `connect` of a file that does not wait, for which nobody dials yet: EINPROGRESS is what the caller is to
        be told, and the connection is up, or fails, once `keep` says so. Else the errno.

        `gave_up` is called once, on any thread, where the guest gives it up, or the relay is closed, before that. The
        guest's end has a name of its own then, other than the far side sees. Raises OSError.
        """
        return self._client.promise(guest, dest, gave_up)

    def keep(
        self,
        hold: Hold,
        far: socket.socket | None,
        error: int = 0,
        ended: Ended | None = None,
    ) -> bool:
        """Who dials for a promised connection: `far`, taken over, which has begun to; or the errno with which it fails.
        False, and nothing is taken, where the guest waits no more. `ended` as for `connect`. Raises OSError."""
        return self._client.keep(hold, far, error, ended)

    def join(self, inner: socket.socket, outer: socket.socket, ended: Ended | None = None) -> None:
        """Move bytes between two connected sockets, which are the relay's from now on, until both ends are done.
        `ended` may be a rule's `Terms`."""
        self._join(inner, outer, ended)

    def release_port(self, port: int) -> None:
        """Close listeners of ours that stand for destinations with this port and are not in use, because the guest
        is about to bind it."""
        self._client.release_port(port)

    def on_device(self, port: int) -> AbstractContextManager[None]:
        """For a moment, have listeners of ours that stand for destinations with this port be the loopback device's
        alone, by which everything comes to them: then the kernel lets those of other devices have the port, too."""
        return self._client.on_device(port)

    def stands_for(self, cookie: int) -> bool:
        """Whether the listening socket with this SO_COOKIE in the guest's namespace is the relay's, not the guest's."""
        return self._client.stands_for(cookie)

    def publish(
        self,
        listener: socket.socket,
        guest_port: int,
        guest_loopback: IPAddress | None,
        closed: Callable[[], None],
        ended: Ended | None = None,
        opened: Opened | None = None,
    ) -> None:
        """Pass on whoever connects to `listener` (bound and listening in the host's namespace) to the guest's own
        listener on `guest_port`, from the client's address and port, to the host address that the client used.

        `guest_loopback`: the guest listens on this address of its loopback only, which is dialled instead, for
        clients of either family. A client whom the guest's kernel refuses is reset. The listener belongs to the
        relay from now on; `closed()` is called on the relay's
        thread when accepting fails for good, and then the listener is closed. `opened` is asked for each client who is
        told of that connection's end, instead of `ended`.
        """
        self._server.publish(listener, guest_port, guest_loopback, closed, ended, opened)

    def unpublish(self, listener: socket.socket) -> None:
        """Close the listener, so that its port is free at once. Connections go on. Unknown listeners are fine."""
        self._server.unpublish(listener)

    def withdraw(self, listener: socket.socket) -> None:
        """Undo publish(): the listener is its owner's again."""
        self._server.withdraw(listener)

    def heed(self, listener: socket.socket, cookie: int, shut: Callable[[], None]) -> None:
        """Call shut() once on the relay's thread when the guest's listener listens no more though it is there, as
        shutdown(2) leaves it. This is a duplicate, which the caller closes afterwards. Until unwatch(), and not once
        it is closed."""
        self._server.heed(listener, cookie, shut)

    def watch(self, cookie: int, closed: Callable[[], None], listening: bool = True) -> None:
        """Call closed() once on the relay's thread when the guest's socket with this SO_COOKIE is gone.

        A listening one may have gone already; with `listening` False the socket is only bound so far, and the caller
        holds it open meanwhile; to be called again once it listens. Raises OSError where the kernel lacks sock_diag for
        TCP (CONFIG_INET_TCP_DIAG).
        """
        self._server.watch(cookie, closed, listening)

    def unwatch(self, cookie: int) -> None:
        """Undo watch()."""
        self._server.unwatch(cookie)

    def judge(self, admit: Callable[[Endpoint, int], bool | Future[bool]]) -> None:
        """Ask `admit` about each client (its unmapped address) of a published port of the guest's, on the relay's
        thread; one that is not admitted is reset before the guest hears of it."""
        self._server.admit = admit

    def connections(self) -> int:
        """How many connections are being moved, or held until their first bytes are right."""
        return 0 if self._closed else _core.mover_live(self._mover) + self._verifier.live()

    def dialling(self) -> int:
        """How many connections have been asked for whose far side has not answered."""
        return self._client.dialling()

    def close(self, linger: float = 0.0) -> None:
        """Release everything. What guests sent before they closed is still delivered, for up to `linger` seconds;
        connections with an open guest side are reset after that. Calling it again is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._client.close()
        self._server.close()
        self._verifier.close()
        self._loop.stop()
        # Who is to be told of ends hears of those that come now, too.
        deadline = time.monotonic() + min(linger, LAST_ENDS_S)
        self._fetch_ended()
        while self._ended and time.monotonic() < deadline:
            time.sleep(0.002)
            self._fetch_ended()
        left = {token: _core.mover_bytes(self._mover, token) or (0, 0) for token in self._ended}
        _core.mover_close(self._mover, int(linger * 1000))
        for token, (sent, received) in left.items():
            self._ended.pop(token)(sent, received, errno.ECONNRESET)

    def _join(self, guest: socket.socket, far: socket.socket, ended: Ended | None) -> None:
        terms = ended if isinstance(ended, Terms) else Terms(ended)
        if terms.check is None:
            self._carry(guest, far, ended, terms)
            return
        self._verifier.hold(
            guest, far, terms.check, lambda: self._carry(guest, far, ended, terms), terms
        )

    def _carry(
        self, guest: socket.socket, far: socket.socket, ended: Ended | None, terms: Terms
    ) -> None:
        bucket = terms.grant.bucket if terms.grant is not None else None
        splice = getattr(far, "splice", None)
        if splice is not None:
            # A socket of another stack, which moves bytes itself, as fast as it can.
            if bucket is not None:
                ours, theirs = socket.socketpair()
                self._move(guest, ours, None, bucket)
                guest = theirs
            try:
                splice(guest, ended or (lambda sent, received, error: None))
            except OSError:
                reset(guest)  # it ended meanwhile
                reset(far)
            return
        self._move(guest, far, ended, bucket)

    def _move(
        self, guest: socket.socket, far: socket.socket, ended: Ended | None, bucket: object
    ) -> None:
        with self._lock:
            if self._closed:
                guest.close()
                far.close()
                return
            told = ended is not None
            token = _core.mover_add(self._mover, guest.detach(), far.detach(), told, bucket)
            if ended is not None:
                self._ended[token] = ended

    def _fetch_ended(self) -> None:
        for token, sent, received, error, _ in _core.mover_ended(self._mover):
            with self._lock:
                ended = self._ended.pop(token)
            ended(sent, received, error)
