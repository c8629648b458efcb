"""The supervisor: judges a guest's trapped calls and has them carried out.

Theory of operation: the C core receives notifications, hands out sockets and repeats what was decided; what it cannot
answer comes here as a `Question`, one after the other, on one thread that never waits for the network. A connect is
decided here and then runs in the core (direct) or in the relay. Every question gets exactly one answer; a fault in
this code refuses the call.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from xensock import _core
from xensock.calls.address import Endpoint
from xensock.calls.call import Decision, Verb
from xensock.policy.point import Point, address_of, user_of
from xensock.supervisor import (
    astray,
    binding,
    connecting,
    datagram_calls,
    family,
    memberships,
    options,
    queries,
    swap,
    swift,
)
from xensock.supervisor.diag import cookie
from xensock.supervisor.holders import Holders
from xensock.supervisor.limits import Limits, Taken
from xensock.supervisor.ports import ForeignPorts, Ports
from xensock.supervisor.publication import Publications
from xensock.supervisor.question import Question, shown
from xensock.supervisor.unix_calls import UnixCalls
from xensock.supervisor.waiting import Waiting

if TYPE_CHECKING:
    from concurrent.futures import Future

    from xensock.calls.record import Outcome, Path, Record
    from xensock.policy.gate import Gate
    from xensock.policy.point import Current
    from xensock.policy.policy import Policy
    from xensock.stack.stacks import Stacks
    from xensock.supervisor.datagrams import Datagrams
    from xensock.supervisor.diag import Diag
    from xensock.supervisor.dns import DnsServer
    from xensock.supervisor.ending import Endings
    from xensock.supervisor.guest import Guest
    from xensock.supervisor.privileged import Network
    from xensock.supervisor.relay import Ended, Relay
    from xensock.supervisor.relay_server import Opened

Handler = Callable[["Supervisor", Question], None]


MOST_RELAYED = 100_000
_CARRIED = ("direct", "relay", "ring")  # what leaves the guest


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a connect runs under; the core names it by number."""

    decision: Decision
    datapath: Path
    outcome: Outcome


@dataclass(slots=True)
class Parts:
    """What a supervisor works with."""

    guest: Guest
    name: str
    policy: Policy | Current
    names_of: connecting.NamesOf
    relay: Relay
    dns: DnsServer
    host_diag: Diag
    direct: bool
    stacks: Stacks
    publications: Publications = field(default_factory=Publications)
    datagrams: Datagrams | None = None
    record: Callable[[Record], None] | None = None
    complain: Callable[[str], None] = field(default=lambda text: None)
    own_family: bool = False  # AF_XENSOCK is what leaves the guest, and nothing else
    listener: int = -1  # of the filter whose processes it serves, and its own from `start` on
    killable: bool = False  # see Guest
    endings: Endings | None = None  # tells of connections' ends, where anybody wants to know
    gate: Gate | None = None  # see Point
    ended: Callable[[], None] = field(default=lambda: None)  # no process of the filter is left
    point: Point | None = None  # the guest's, where others decide by it too
    limits: Limits = field(default_factory=Limits)
    warn: Callable[[str], None] = field(default=lambda text: None)
    journal: int = -1  # see Guest


@dataclass(slots=True)
class Held:
    """What a guest's supervisors know of its sockets; used under its lock."""

    ports: Ports
    diag: Diag
    holders: Holders
    lock: threading.RLock = field(default_factory=threading.RLock)
    reserved: dict[int, binding.Outers] = field(
        default_factory=dict
    )  # relay: what the host has for the guest's bound ones, by cookie
    own: set[int] = field(default_factory=set)  # cookies of AF_XENSOCK sockets, where that matters
    dropping: dict[threading.Event, int] = field(default_factory=dict)  # such, being closed; ports
    relayed: set[int] = field(default_factory=set)  # cookies of those whose connect the relay began
    abandoned: set[Future[Any]] = field(
        default_factory=set
    )  # dials under way that nobody waits for
    supervisors: set[Supervisor] = field(default_factory=set)  # that run
    users: int = 0
    taken: Taken = field(default_factory=Taken)
    network: Network | None = None  # once it was asked for

    @classmethod
    def of(cls, parts: Parts) -> Held:
        ports = Ports(parts.host_diag) if parts.stacks.default.local else ForeignPorts()
        return cls(ports, parts.guest.diag(), Holders(parts.guest))


class Supervisor:
    """Serves the processes under one filter of a guest from `start` until the last of them is gone.

    `beside`: another supervisor of the same guest, for processes that came into it later.
    """

    def __init__(self, parts: Parts, beside: Supervisor | None = None) -> None:
        self.parts = parts
        self.point = parts.point or Point(
            parts.name, parts.policy, parts.names_of, parts.record, gate=parts.gate
        )
        self.endings = parts.endings
        held: Held = beside.held if beside is not None else Held.of(parts)
        self.held: Held = held
        with held.lock:
            held.users += 1
        self.guest_diag = held.diag
        self.ports = held.ports
        self.reserved = held.reserved
        self.own = held.own
        self.dropping = held.dropping
        self.relayed = held.relayed
        self._unix: UnixCalls = UnixCalls(self, beside._unix if beside is not None else None)
        self.taken = held.taken
        self.waiting = Waiting(self)
        self._verdicts: dict[int, Verdict] = {0: Verdict(Decision(True, ""), "", "")}
        self._numbers: dict[Verdict, int] = {}
        self._kinds: dict[tuple[bytes, int, int, bytes], swift.Kind] = {}
        self._thread = threading.Thread(target=self._serve, name="supervisor", daemon=True)
        self._stopped = False
        self.handle: _core.Handle = None
        self._handlers: dict[int, Handler] = {
            _core.SYS["connect"]: connecting.connect,
            _core.SYS["bind"]: binding.bind,
            _core.SYS["listen"]: binding.listen,
            _core.SYS["ioctl"]: queries.ioctl,
            _core.SYS["socket"]: family.make,
        }
        self._of_datagrams: dict[int, Handler] = {
            **self._handlers,
            _core.SYS["connect"]: datagram_calls.connect,
            _core.SYS["bind"]: datagram_calls.bind,
            _core.SYS["setsockopt"]: memberships.setsockopt,
        }

    def start(self) -> None:
        parts = self.parts
        self.handle = _core.super_start(
            parts.listener, self.point.recording, parts.killable, parts.journal
        )
        with self.held.lock:
            self.held.supervisors.add(self)
        limits = parts.limits
        _core.super_limit(self.handle, limits.sockets, limits.connects, limits.calls)
        self._thread.start()

    def recording(self) -> None:
        """Whether records are wanted may have changed, for all supervisors of this guest."""
        for each in list(self.held.supervisors):
            _core.super_record(each.handle, each.point.recording)

    def stop(self) -> None:
        """End the threads and let go of everything; the guest is gone or will be refused. Once is enough."""
        if self._stopped:
            return
        self._stopped = True
        with self.held.lock:
            self.held.supervisors.discard(self)
        _core.super_stop(self.handle)
        self._thread.join()
        self._unix.close()
        self._rest()
        with self.held.lock:
            self.held.users -= 1
            if self.held.users:
                return
        self.guest_diag.close()
        self.held.holders.close()
        for sock in [each for outers in list(self.reserved.values()) for each in outers.sockets]:
            self.parts.relay.unpublish(sock)  # it may not have heard yet that the guest's is gone
            sock.close()

    def _rest(self) -> None:
        """Record what the core answered last: a guest may end on an answer before its record is fetched."""
        while (events := _core.super_next(self.handle, 0)) is not None:
            for found in events:
                if len(found) == 3:
                    self._told(found)
                else:
                    Question.from_event(found).sock.close()  # nobody waits for it any more
        if self.endings is not None:
            self._forget_kinds(self.endings)

    def _serve(self) -> None:
        while (events := _core.super_next(self.handle, -1)) is not None:
            for found in events:
                if len(found) == 3:
                    self._tell(found)
                else:
                    self._ask(found)
        self.parts.ended()

    def _ask(self, event: _core.Event) -> None:
        question = Question.from_event(event)
        try:
            with self.held.lock:
                self.handler(question)(self, question)
        except Exception:
            # No decision means no: the guest is refused and the fault is shown, not hidden.
            self.parts.complain(traceback.format_exc())
            self.answer(question, errno.EPERM)
        finally:
            question.sock.close()

    def handler(self, q: Question) -> Handler:
        if q.nr in (_core.SYS["socket"], _core.SYS["ioctl"]):
            return self._handlers[q.nr]
        if q.nr == _core.SYS["setsockopt"]:
            return self._of_datagrams[q.nr]
        if q.sock.family == socket.AF_UNIX:
            return self._unix.handlers[q.nr]
        if astray.is_astray(self, q):
            return astray.bring_home
        if family.stays(self, q):
            return family.inside
        datagrams = q.sock.type & 0xF == socket.SOCK_DGRAM
        return (self._of_datagrams if datagrams else self._handlers)[q.nr]

    # --- answers

    def answer(self, q: Question, error: int, value: int = 0) -> None:
        """Answer; if the caller was interrupted, the outcome waits for the call's re-issue on the same socket.

        Our duplicate goes first: the caller may close the socket at once and expect it to be gone.
        """
        key = cookie(q.sock) if q.sock.fileno() >= 0 else 0
        q.sock.close()
        sent = _core.super_answer(self.handle, q.id, value, error, False)
        if sent == errno.ENOENT and key:
            _core.super_keep(self.handle, key, q.nr, error)

    def run_connect(
        self, q: Question, verdict: Verdict, cache: bool = False, begun: bool = False
    ) -> None:
        """Let the core connect the socket to the address that was judged, and answer.

        `begun`: the socket's state is all that is to be answered; the address was not judged.
        """
        if verdict.datapath == "direct" and self.endings is not None:
            self.endings.expects(q.sock.family)
        _core.super_connect(
            self.handle,
            q.id,
            q.tid,
            q.sock.detach(),
            q.addr,
            self.number(verdict, cache),
            q.start_ns,
            cache,
            begun,
        )

    def await_connect(self, q: Question, verdict: Verdict) -> None:
        """The connect was started: let the core wait for it and answer."""
        _core.super_await(
            self.handle,
            q.id,
            q.tid,
            q.sock.detach(),
            q.addr,
            self.number(verdict, False),
            q.start_ns,
        )

    def refuse_connect(self, q: Question, decision: Decision) -> None:
        verdict = Verdict(decision, "", "deny")
        if decision.cacheable:
            _core.super_refuse(self.handle, q.addr, self.number(verdict, True), decision.error)
        self.answer(q, decision.error)
        self.record(q, Verb.CONNECT, described(q), verdict, decision.error)

    def number(self, verdict: Verdict, cache: bool) -> int:
        """The core's name for a verdict; 0 while nobody records."""
        if not self.point.recording:
            return 0
        known = self._numbers.get(verdict)
        if known is None:
            known = len(self._verdicts)
            self._numbers[verdict] = known
            self._verdicts[known] = verdict
        return known

    # --- the network a socket belongs to

    def listens(self, key: int) -> bool:
        """Whether the host's socket with this cookie is a listener by which this guest is reached. From any thread."""
        if self.ports.has(key):
            return True
        held = [sock for outers in list(self.reserved.values()) for sock in outers.sockets]
        return any(sock.fileno() >= 0 and cookie(sock) == key for sock in held)

    def remember_relayed(self, key: int) -> None:
        if len(self.relayed) >= MOST_RELAYED:
            self.relayed.clear()  # only the wording of a second connect after a failed one depends on it
        self.relayed.add(key)

    def is_shared(self, q: Question) -> bool:
        """Whether other processes of the guest hold the caller's socket."""
        born = _core.super_born(self.handle, cookie(q.sock))
        return self.held.holders.elsewhere(q.tid, q.sock, born)

    def open_sockets(self) -> set[int]:
        """Inodes of all sockets that the guest's processes hold."""
        return self.held.holders.sockets()

    def move(
        self, q: Question, host: bool, begin: Callable[[socket.socket], None] = lambda sock: None
    ) -> None:
        """See that the caller's socket belongs to the host's network, or to the guest's. Raises OSError.

        `begin` is called on a new socket before it takes the old one's place.
        """
        if q.host == host:
            return
        inside = self.parts.guest.socket
        there, here = (socket.socket, inside) if host else (inside, socket.socket)
        bound = options.is_bound(q.sock, here)
        new = there(q.sock.family, socket.SOCK_STREAM, 0)
        try:
            swap.replace(self.handle, q.id, q.tid, q.sock, new, bound, begin)
        except BaseException:
            new.close()
            raise
        q.sock.close()
        q.sock, q.host = new, host

    # --- records

    def target(self, q: Question) -> str:
        """What the record calls the address; "" while nobody records."""
        return described(q) if self.point.recording else ""

    def record(
        self,
        q: Question,
        verb: Verb,
        target: str,
        verdict: Verdict,
        error: int,
        value: int = 0,
        connection: int = 0,
    ) -> Record | None:
        if not self.point.keeps(verdict.outcome):
            return None
        took = time.monotonic_ns() - q.start_ns
        return self._write(
            q.tid,
            q.program if self.point.recording else program_of(q.tid),  # the core had no need of it
            verb,
            target,
            verdict,
            error,
            q.start_ns,
            took,
            value=value,
            connection=connection,
        )

    def _tell(self, run: _core.Run) -> None:
        try:
            self._told(run)
        except Exception:
            # Those calls are done: a fault of the record is shown, and the next call is answered all the same.
            self.parts.complain(traceback.format_exc())

    def _told(self, run: _core.Run) -> None:
        """Record connects that the core carried out: as lines, where only the audit log wants to know."""
        calls, samples, tids = run
        take = getattr(self.point.record, "lines", None)
        if take is None or self.endings is None:
            rest = _core.run_events(calls)
        else:
            if len(self._kinds) + len(samples) > swift.MOST:
                self._forget_kinds(
                    self.endings
                )  # not between two samples: the first may be forgotten then
            kinds = [self._kind(event, self.endings) for event in samples]
            users = [user_of(tid) for tid in tids]
            lines, count, rest = self.endings.calls(run, kinds, users)
            if count:
                take(lines, count)
        for event in rest:
            self._done(event)

    def _done(self, event: _core.Event) -> None:
        _, _, tid, _, args, _, _, _, _, addr, number, error, start, took, name = event
        verdict = self._verdicts[number]
        begun = verdict.datapath in _CARRIED and error in (0, errno.EINPROGRESS)
        record = self._write(
            tid,
            shown(name),
            Verb.CONNECT,
            connecting.describe(addr),
            verdict,
            error,
            start,
            took,
            connection=args[0] if begun else 0,
        )
        if record is not None and record.connection and verdict.datapath == "direct":
            self.began(record)

    def _kind(self, event: _core.Event, endings: Endings) -> int | None:
        """What a direct connection's record has in common with others; None: it is none."""
        _, _, tid, _, args, _, _, _, _, addr, number, error, start, took, name = event
        verdict = self._verdicts[number]
        if verdict.datapath != "direct" or error not in (0, errno.EINPROGRESS):
            return None
        key = (addr, number, error, name)
        kind = self._kinds.get(key)
        if kind is None or self.point.name(verdict.decision, kind.address) != kind.record.name:
            if kind is not None:
                endings.ledger.drop(self._kinds.pop(key))
            target = connecting.describe(addr)
            record = self.point.make(
                Verb.CONNECT, target, verdict.decision, verdict.outcome, "direct", error,
                pid=tid, program=shown(name), start=start, took=took, connection=args[0],
            )  # fmt: skip
            kind = self._kinds[key] = endings.ledger.kind(record, address_of(target))
        return kind.number

    def _forget_kinds(self, endings: Endings) -> None:
        for kind in self._kinds.values():
            endings.ledger.drop(kind)
        self._kinds.clear()

    def began(self, record: Record) -> None:
        """A connection of the host's socket that the guest holds: its end is to be told."""
        if self.endings is not None:
            self.endings.began(record)

    def ended(self, q: Question, verdict: Verdict) -> Ended | None:
        """For whoever moves the bytes of a connection that is about to be made; None: nobody wants to know."""
        if self.endings is None or not self.point.recording:
            return None
        return self.endings.ended(
            self.point.make(
                Verb.CONNECT,
                self.target(q),
                verdict.decision,
                verdict.outcome,
                verdict.datapath,
                0,
                pid=q.tid,
                program=q.program,
                start=q.start_ns,
                took=0,
                connection=cookie(q.sock),
            )
        )

    def accepts(self, tid: int, program: str, verdict: Verdict) -> Opened | None:
        """For whoever passes on connections of others to a listener of the guest's: who is told of the end of each."""
        if self.endings is None:
            return None
        endings = self.endings

        def opened(client: socket.socket) -> Ended | None:
            if not self.point.recording:
                return None
            record = self.point.make(
                Verb.ACCEPT,
                peer_of(client),
                verdict.decision,
                verdict.outcome,
                verdict.datapath,
                0,
                pid=tid,
                program=program,
                start=time.monotonic_ns(),
                took=0,
                connection=cookie(client) if self.parts.stacks.default.local else 0,
            )
            return endings.ended(replace(record, accepted=True))

        return opened

    def _write(
        self,
        tid: int,
        program: str,
        verb: Verb,
        target: str,
        verdict: Verdict,
        error: int,
        start: int,
        took: int,
        *,
        value: int = 0,
        connection: int = 0,
    ) -> Record | None:
        return self.point.write(
            verb,
            target,
            verdict.decision,
            verdict.outcome,
            verdict.datapath,
            error,
            pid=tid,
            program=program,
            start=start,
            took=took,
            value=value,
            connection=connection,
        )


def described(q: Question) -> str:
    """What records call the address of a call."""
    end = q.endpoint()
    return str(end) if end is not None else f"[{len(q.addr)} bytes]"


def peer_of(client: socket.socket) -> str:
    """The name of the other end, for records; "?" once it is gone."""
    try:
        return str(Endpoint.from_python(client.getpeername()).unmapped())
    except OSError:
        return "?"


def program_of(pid: int) -> str:
    """The short name of the program (proc(5), comm); "?" once it is gone."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            return shown(comm.read(64)).rstrip("\n")
    except OSError:
        return "?"
