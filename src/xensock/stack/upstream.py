"""The stack that is another backend: sockets and names over PV Calls rings.

The backend decides. Why it did is asked when it refused, when somebody keeps records, and for the loopback, where the
guest's own network comes next.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Protocol
from xensock.calls.hops import MOST, circle, passed_on
from xensock.client.attachment import open_link
from xensock.client.datagrams import Datagrams
from xensock.client.explaining import decision_of, explanation_of
from xensock.client.sockets import socket as OwnSocket
from xensock.stack import resolver_wire as wire
from xensock.stack.dials import Dials
from xensock.stack.stacks import DecidedError, ExplainedAnswer, Look

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from xensock.calls.address import IPAddress
    from xensock.client.link import Link
    from xensock.client.names import NameService

THREADS = 4
LOOKS = 16  # at once, at one backend; a look takes as long as the backend, or those behind it
RING_ORDER = 7  # 256 KiB each way
_HARD = struct.pack("ii", 1, 0)  # SO_LINGER: close(2) resets
_ICMP = {socket.AF_INET: socket.IPPROTO_ICMP, socket.AF_INET6: socket.IPPROTO_ICMPV6}


class UnreachableError(OSError):
    """Nobody carries out calls there: `backend` is its name, `url` where it should be; the cause is chained."""

    def __init__(self, name: str, url: str, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause))
        self.backend, self.url = name, url


class Carried(OwnSocket):
    """A socket of a backend that knows what was decided about it (`stacks.decided`)."""

    def __init__(
        self,
        family: int,
        type: int,
        protocol: int,
        link: Link,
        upstream: Upstream,
        hops: int = 0,
    ) -> None:
        super().__init__(family, type, protocol, link=link, hops=hops)
        self._upstream = upstream
        self.decided: Decision | None = None

    def connect_ex(self, address: Any) -> int:
        """connect(2). EACCES also where the backend has a listener of this guest's at its loopback: the guest's network
        would have taken that call if it still listened."""
        number = super().connect_ex(address)
        loopback = Endpoint.from_python(address).unmapped().host.is_loopback
        own = self._ask(number, always=loopback)
        return errno.EACCES if own and loopback else number

    def look(self, end: Endpoint) -> Look:
        """Connect, where the socket was connected before, too."""
        held = self._held
        assert isinstance(held, Datagrams)
        held.connect(b"")  # else it would keep the address that it had there
        error = self.connect_ex(end.as_python())
        own = Endpoint.from_sockaddr(held.own) if not error and held.own else None
        return Look(error, own, self.decided)

    frame = OwnSocket._frame  # of datagrams, for those who pass on what comes

    def bind(self, address: Any) -> None:
        """bind(2). Raises DecidedError where it is known what was decided, OSError."""
        self._judged(lambda: OwnSocket.bind(self, address))

    def listen(self, backlog: int = 128) -> None:
        """listen(2). Raises as bind()."""
        self._judged(lambda: OwnSocket.listen(self, backlog))

    def _judged(self, call: Callable[[], None]) -> None:
        try:
            call()
        except OSError as error:
            number = error.errno or errno.EIO
            self._ask(number)
            if self.decided is None:
                raise
            raise DecidedError(number, self.decided) from error
        self._ask(0)

    def _ask(self, number: int, always: bool = False) -> bool:
        """Note what was decided about the call that ended so; whether the guest met itself."""
        self.decided = None
        wanted = always or number == errno.EACCES or self._upstream.recording
        if self._held is None or not wanted:
            return False
        why = explanation_of(self._held)
        if why is not None:
            self.decided = decision_of(why)
            return why.own
        if number == errno.EACCES:
            self.decided = Decision(False, f"refused by {self._upstream.name}", number)
        return False


class Aside(Carried):
    """One whose holders must not wait: what takes as long as the backend takes to answer is done on a thread."""

    def close(self) -> None:
        """close(2), soon."""
        self._soon(super().close)

    def reset(self) -> None:
        """Close with RST, soon."""

        def closing() -> None:
            with suppress(OSError):  # the backend is gone
                self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HARD)
            OwnSocket.close(self)

        self._soon(closing)

    def _soon(self, closing: Callable[[], None]) -> None:
        try:
            self._upstream.threads(0).submit(closing)
        except RuntimeError:  # the network was closed, and it with that
            closing()


class Upstream:
    """A backend at `url`. Raises ValueError for a URL that cannot be understood, UnreachableError.

    recording   whether somebody keeps records
    dials       connections that it is asked for, for those who must not wait (`make_aside`)
    """

    here = False
    local = False  # its ports and addresses are another host's, as far as we know

    def __init__(self, name: str, url: str, guest: str, recording: bool = False) -> None:
        self.name = name
        self.url = url
        self.recording = recording
        self._names: dict[int, NameService] = {}  # by the hops of their questions
        self._threads: dict[int, ThreadPoolExecutor] = {}  # by the hops of their calls
        self.dials = Dials(lambda: self.threads(0), THREADS)
        self._lookers: dict[tuple[int, int, bool], list[Carried]] = {}  # that nobody uses
        self._lock = threading.Lock()  # of _lookers, _threads
        self._closed = False
        try:
            self._link = open_link(url, guest, order=RING_ORDER, splices=True)
        except OSError as error:
            raise UnreachableError(name, url, error) from error
        # The ring's other slots are for calls that wait there, and for those that do not.
        self._looks = threading.Semaphore(min(LOOKS, self._link.frontend.features.slots // 8))

    def make(self, family: int, type: int, protocol: int) -> socket.socket:
        """A socket of the backend's network. Raises OSError: ENETDOWN once the backend is gone."""
        self._check()
        return Carried(family, type & 0xF, protocol, self._link, self)

    def make_passed(self, family: int, hops: int = 1) -> Carried:
        """A stream socket, as `make`, whose calls so many backends pass on."""
        self._check()
        return Carried(family, socket.SOCK_STREAM, 0, self._link, self, hops)

    def make_aside(self, family: int) -> Aside:
        """A stream socket, as `make`, for those who must not wait: its calls are for `dials`."""
        self._check()
        return Aside(family, socket.SOCK_STREAM, 0, self._link, self)

    def make_datagrams(self, family: int, protocol: int, hops: int) -> Carried:
        """A datagram socket, as `make_passed`."""
        self._check()
        return Carried(family, socket.SOCK_DGRAM, protocol, self._link, self, hops)

    @property
    def passer(self) -> Upstream:
        """Itself: it is another backend."""
        return self

    def threads(self, hops: int) -> Executor:
        """For those who must not wait themselves: calls of its sockets take as long as the backend takes to answer.
        Each number of hops has its own: in a circle calls wait for one another, those of fewer hops for more."""
        with self._lock:
            if hops not in self._threads:
                self._threads[hops] = ThreadPoolExecutor(THREADS, f"xs-pass-{self.name}-{hops}")
            return self._threads[hops]

    def create_server(self, host: str, port: int, family: int, dual: bool) -> socket.socket:
        """A listener at the backend; `dual`: for both families. Raises OSError."""
        made = self.make(family, socket.SOCK_STREAM, 0)
        try:
            if self._link.has_options:  # version 1 has none
                made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual))
            made.bind((host, port))
            made.listen()
        except BaseException:
            made.close()
            raise
        return made

    def look(self, protocol: Protocol, end: Endpoint, broadcast: bool = False) -> Look:
        """What the backend's policy and routes say of datagrams to there."""
        number = _ICMP[end.family] if protocol == Protocol.ICMP else 0
        key = (end.family, number, broadcast)
        try:
            with self._looks:
                self._check()
                looker = self._looker(*key)
                found = looker.look(end)
                # One that got no answer still waits for it at the backend.
                self._put_back(key, looker, again=found.error != errno.ENETDOWN)
            self._check()  # else a reset, which it may have been, would be the destination's
            return found
        except OSError as error:
            return Look(error.errno or errno.EIO)

    def _looker(self, family: int, number: int, broadcast: bool) -> Carried:
        """A socket that looks, of those that there are or a new one. Raises OSError."""
        with self._lock:
            idle = self._lookers.get((family, number, broadcast))
            if idle:
                return idle.pop()
        looker = Carried(family, socket.SOCK_DGRAM, number, self._link, self)
        if broadcast:
            looker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return looker

    def _put_back(self, key: tuple[int, int, bool], looker: Carried, again: bool) -> None:
        with self._lock:
            if again and not self._closed:
                self._lookers.setdefault(key, []).append(looker)
                return
        looker.close()

    async def query(self, message: bytes, server: IPAddress | None = None) -> bytes:
        """The backend's answer to a DNS message, whatever server the guest asked. Raises OSError."""
        hops = passed_on.get() + 1
        if hops > MOST:
            refused = wire.reply(message, wire.read_question(message), wire.NXDOMAIN)
            return ExplainedAnswer.make(refused, circle(self.name))
        if hops not in self._names:
            # The backend is asked for it, and may be slow to answer.
            self._names[hops] = await asyncio.to_thread(self._link.name_service, hops)
        answer, why = await asyncio.wrap_future(self._names[hops].ask(message))
        return answer if why is None else ExplainedAnswer.make(answer, decision_of(why))

    def _check(self) -> None:
        if self._link.frontend.error is not None:
            raise OSError(errno.ENETDOWN, f"the backend {self.name} is gone")

    @property
    def gone(self) -> bool:
        """Whether nobody carries out calls there any more."""
        return self._link.frontend.error is not None

    @property
    def informed(self) -> bool:
        """Whether datagrams come and go with what IP says beside their payload."""
        return self._link.informed

    def may_ping(self) -> bool:
        """Whether the backend has ping sockets for its user (icmp(7))."""
        try:
            self.make(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
        except OSError:
            return False
        return True

    def live(self) -> int:
        """Connections under way."""
        return self._link.live()

    def close(self, patience: float = 0) -> None:
        """Leave the backend. What guests sent is delivered; those who still may send get `patience` seconds to end."""
        with self._lock:
            self._closed = True  # a look that is under way ends with the link
            lookers = [each for idle in self._lookers.values() for each in idle]
            self._lookers.clear()
            pools = list(self._threads.values())
        for looker in lookers:
            looker.close()
        # What is left has its turn, and ends with the link. Cancelled, it would be told of under the executor's lock,
        # for which somebody may wait who holds what is needed then.
        for threads in pools:
            threads.shutdown(wait=False)
        self._link.finish(patience)
        self._link.close()


def guest_name(name: str) -> str:
    """What a backend is told about who we are, at most 64 bytes."""
    return f"{name}[{os.getpid()}]".encode()[-64:].decode(errors="ignore")
