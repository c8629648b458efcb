"""UDP and ICMP echo: one ring per socket, each datagram decided by its destination.

A destination is decided once per socket and for some seconds, as its answer may depend on names that
come and go; what was decided is recorded then.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from xensock import _core
from xensock.calls.address import AddressError, Endpoint, family_of, packed
from xensock.calls.call import Decision, Protocol, Verb
from xensock.calls.hops import MOST
from xensock.pvcalls.serving import consulting, listening, resolving
from xensock.pvcalls.serving.addresses import OWN, endpoint, name_of
from xensock.pvcalls.serving.afar import QUOTED, REPORTS, Afar
from xensock.pvcalls.serving.beside import Beside, carried, networks
from xensock.pvcalls.serving.framing import TURN, Frames
from xensock.pvcalls.serving.held import in_family
from xensock.pvcalls.serving.limits import refuse
from xensock.pvcalls.serving.rings import map_ring
from xensock.pvcalls.serving.telling import ask_for
from xensock.wire.errors import to_wire
from xensock.wire.extensions import Extension
from xensock.wire.frames import Frame, Icmp
from xensock.wire.packet_info import ROOM, Control, PacketInfo

if TYPE_CHECKING:
    from concurrent.futures import Future

    from xensock.calls.record import Outcome
    from xensock.pvcalls.serving.beside import Found, Network
    from xensock.pvcalls.serving.call import Call
    from xensock.pvcalls.serving.guest import Guest
    from xensock.pvcalls.serving.held import Held
    from xensock.wire.requests import Attach, Connect

ICMP, ICMPV6 = 1, 58
NAME_SERVICE = 53
REMEMBERED = 1024  # destinations of one socket
HOLDS = 5.0  # seconds that a decision about a destination holds
LONGEST = 65535
LATER = Decision(True, "asked about when something is sent")
MOST_WAITING = (
    64  # datagrams to one destination, or to several, that wait until it is decided about
)
UNSPECIFIED = bytes(16)  # struct sockaddr, AF_UNSPEC
ASKED = -1
# struct sock_extended_err of linux/errqueue.h: errno, origin, type, code, info; and its origins that are ICMP's.
_REPORT = struct.Struct("=IBBBxII")
_BY_ICMP = (2, 3)


def echo_protocol(family: int) -> int:
    """The protocol of "ping sockets" (icmp(7), IPPROTO_ICMP with SOCK_DGRAM)."""
    return ICMPV6 if family == socket.AF_INET6 else ICMP


def attach(guest: Guest, call: Call, request: Attach) -> None:
    """Map the ring of a datagram socket."""
    held = guest.held(request.id)
    if held.kind != socket.SOCK_DGRAM:
        raise refuse(errno.EOPNOTSUPP)
    if held.ring is not None:
        raise refuse(errno.EISCONN)
    held.ring = map_ring(guest, request.ref, request.port)
    if held.sock is None:
        resolving.attached(guest, held)
    else:
        held.datagrams = Datagrams(guest, held)
    guest.keep(held)
    call.answer()


def connect(guest: Guest, call: Call, held: Held, request: Connect) -> None:
    """Set the peer of a datagram socket; AF_UNSPEC removes it (connect(2))."""
    if held.sock is None:
        raise refuse(errno.EOPNOTSUPP)
    if held.datagrams is None:
        raise refuse(errno.ENOTCONN)
    if len(request.address) >= 2 and family_of(request.address) == socket.AF_UNSPEC:
        held.datagrams.disconnect()
        guest.keep(held)
        call.answer()
        return
    end = endpoint(held, request.address)
    decision, own = decide(guest, held, end)
    later = not own and guest.point.consults(Verb.CONNECT)
    if own or later:
        # connecting sends nothing
        connected(
            guest, call, held, end, (LATER if later else decision, None, None), own, not later
        )
        return
    found = held.datagrams.find(end, decision)
    if not isinstance(found, tuple):
        consulting.park(
            guest,
            call,
            held,
            found,
            lambda found: connected(guest, call, held, end, found),
            lambda: connect(guest, call, held, request),
        )
        return
    connected(guest, call, held, end, found)


def connected(
    guest: Guest,
    call: Call,
    held: Held,
    end: Endpoint,
    found: Found,
    own: bool = False,
    judged: bool = True,
) -> None:
    """The rest of `connect`, once it is known what was decided, and what carries datagrams there."""
    decision, network, source = found
    held.decided = decision, own
    error = decision.error
    if decision.allowed and held.datagrams is not None:
        error = held.datagrams.connect(end, judged=judged, network=network)
        guest.keep(held)
    outcome: Outcome | None = "guest" if own else None
    guest.record(call, Verb.CONNECT, target(held, end), decision, error, outcome=outcome)
    response = call.response(to_wire(error))
    if not error and Extension.NAMES in guest.extensions:
        name = name_of(held.host.getsockname())
        if network is not None and source is not None:
            name = in_family(source, held.family).sockaddr()
        response = response.with_address(name)
    call.send(response)


def decide(guest: Guest, held: Held, end: Endpoint) -> tuple[Decision, bool]:
    """The policy's decision about a destination, and whether it is a socket of the guest itself."""
    protocol, where = about(held, end)
    if protocol == Protocol.UDP and guest.backend.ports.is_own(guest, where, socket.SOCK_DGRAM):
        return OWN, True
    return guest.point.connect(protocol, where, guest.transport.pid), False


def about(held: Held, end: Endpoint) -> tuple[Protocol, Endpoint]:
    """What a rule is asked about; an echo has no port, and a rule that names ports is not about it."""
    inner = end.unmapped()
    if held.protocol in (ICMP, ICMPV6):
        return Protocol.ICMP, Endpoint(inner.host, 0, inner.scope)
    return Protocol.UDP, inner


def target(held: Held, end: Endpoint) -> str:
    """What records call a destination; an echo has no port."""
    if held.protocol not in (ICMP, ICMPV6):
        return f"{end}/{Protocol.UDP}"
    host = f"{end.host}" if end.host.version == 4 else f"[{end.host}]"
    return f"{host}/{Protocol.ICMP}"


class Datagrams:
    """Moves the datagrams of one socket, on the loop's thread."""

    def __init__(self, guest: Guest, held: Held) -> None:
        ring = held.ring
        assert ring is not None
        self._guest = guest
        self._held = held
        self._sock = held.host
        self._fd = self._sock.fileno()
        self._loop = guest.backend.loop
        self._decided: dict[bytes, tuple[float, Endpoint, int, Beside | Afar | None]] = {}
        self._beside: dict[Network, Beside] = {}  # sockets in other networks of this host,
        self._afar: dict[Network, Afar] = {}  # and at other backends
        self._peer: Endpoint | None = None
        self._by: Beside | Afar | None = None  # which of those sends to the peer
        self._asks = False  # the peer is a name server, whom we stand in for
        self._judged = True  # what goes to the peer was decided when it became that
        self._held_back: dict[bytes, list[Frame]] = {}  # by destination: until it is decided about
        self._open = 0.0, False  # until when it holds whether strangers may send
        self._waiting: Frame | None = None
        self._reading = False
        self._writing = False
        self._closed = False
        self._frames = Frames(guest, ring, self._send, self._receive)
        if self._frames.informed:
            ask_for(self._sock)
        held.close = self.close
        self._watch(True)

    def close(self) -> None:
        """Let go of ring and socket."""
        self._closed = True
        self._held_back.clear()
        self._watch(False)
        self._unblock()
        for other in self._beside.values():
            other.close()
        for far in self._afar.values():
            far.close()
        self._frames.close()

    def peer(self) -> bytes | None:
        """The peer by the host's own network, as a struct sockaddr."""
        return self._peer.sockaddr() if self._peer is not None and self._by is None else None

    def connect(self, end: Endpoint, judged: bool = True, network: Network | None = None) -> int:
        """Set the peer; the errno of connect(2). `judged`: whether it is decided about; `network`: one that is not the
        host's own."""
        self._judged = judged
        if network is not None:
            self.disconnect()
            try:
                self._by = self._in(network)
            except OSError as error:
                return error.errno or errno.EIO
            self._peer = end
            return 0
        self._by = None
        if self._is_name_service(end):
            self._peer, self._asks = end, True
            return 0
        try:
            self._sock.connect(end.as_python())
        except OSError as error:
            return error.errno or errno.EIO
        self._peer, self._asks = end, False
        self._guest.backend.ports.note(self._held)
        return 0

    def disconnect(self) -> None:
        """Forget the peer."""
        if self._peer is not None and not self._asks and self._by is None:
            _core.connect_start(self._fd, UNSPECIFIED, 0)
        self._peer, self._asks, self._by = None, False, None

    def find(self, end: Endpoint, decision: Decision) -> Found | Future[Found]:
        """What carries datagrams to a destination about which that was decided; later, where a backend is asked."""
        protocol, where = about(self._held, end)
        by = networks(self._guest, decision)
        passers = [each.passer for each in by if each.passer is not None]
        for each in by:
            if each.passer is not None and each not in self._afar:
                self._afar[each] = Afar(self._held, each.passer, self._frames, self._heard)
        if not passers:
            return carried(decision, protocol, where, by, {})
        threads = passers[0].threads(min(self._held.hops + 1, MOST))
        try:
            return threads.submit(carried, decision, protocol, where, by, self._afar)
        except RuntimeError:  # the network was closed
            return carried(decision, protocol, where, [], {})

    def _in(self, network: Network) -> Beside | Afar:
        """The socket in another network. Raises OSError."""
        if network in self._afar:
            return self._afar[network]
        if network not in self._beside:
            self._beside[network] = Beside(self._held, network, self._frames, self._heard)
        return self._beside[network]

    def _heard(self, source: Endpoint) -> bool:
        """Whether one who sends by another network is a peer there, or one to whom the guest may send."""
        if self._peer is not None:
            return self._by is not None and source == self._peer
        known = self._decided.get(source.sockaddr())
        return known is not None and known[3] is not None and not known[2]

    # --- from the guest

    def _send(self, frame: Frame) -> bool:
        """Send one datagram; False: the socket's buffer is full, the frame waits."""
        try:
            end = endpoint(self._held, frame.address) if frame.address else None
        except OSError as error:
            self._frames.fail(error.errno or errno.EINVAL, frame.address)
            return True
        to = end or self._peer
        if to is None:
            self._frames.fail(errno.EDESTADDRREQ)
            return True
        if self._is_name_service(to):
            resolving.ask(self._held, frame.payload, to, self._frames)
            return True
        error_number = 0 if end is None and self._judged else self._allowed(to, frame)
        if error_number == ASKED:
            return True
        if not error_number:
            by = self._by if end is None and self._judged else self._decided[to.sockaddr()][3]
            error_number = self._pass_on(frame, to, end, by)
        if error_number == errno.EAGAIN:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._writable)
            return False
        if error_number:
            self._frames.fail(error_number, frame.address)
        return True

    def _pass_on(
        self, frame: Frame, to: Endpoint, end: Endpoint | None, by: Beside | Afar | None
    ) -> int:
        """The errno of sendmsg(2) with what the frame says beside its payload."""
        control: list[Control] = []
        if frame.info is not None:
            try:
                control = self._control(frame.info, to, by)
            except OSError as error:
                return error.errno or errno.EINVAL
        return by.send(frame.payload, to, control) if by else self._transmit(frame, end, control)

    def _control(self, info: PacketInfo, to: Endpoint, by: Beside | Afar | None) -> list[Control]:
        """Raises OSError (EINVAL): a socket that is bound to an address sends from no other; the policy may have
        allowed that one alone."""
        if info.address is not None and by is None:
            own = Endpoint.from_python(self._sock.getsockname()).unmapped().host
            if not own.is_unspecified and info.address != packed(own):
                raise refuse(errno.EINVAL)
        return info.for_sending(self._held.family, to.unmapped().host.version == 4)

    def _transmit(self, frame: Frame, end: Endpoint | None, control: list[Control]) -> int:
        number, payload = 0, frame.payload
        for _ in range(2):
            try:
                if control:
                    where = end.as_python() if end is not None else None
                    self._sock.sendmsg([payload], control, 0, where)
                elif end is None:
                    self._sock.send(payload)
                else:
                    self._sock.sendto(payload, end.as_python())
            except OSError as error:
                # An earlier datagram's failure may be told by this call (udp(7)): tell it, and try again.
                if number and error.errno == number:
                    return number
                number = error.errno or errno.EIO
                if number != errno.ECONNREFUSED:
                    return number
                self._failed_earlier(number)
                continue
            self._guest.counters.sent += len(payload)
            self._guest.backend.ports.note(self._held)
            return 0
        return number

    def _allowed(self, end: Endpoint, frame: Frame) -> int:
        """0, the errno of the refusal, or ASKED: the frame is kept until somebody's word beside the rules is there."""
        now = time.monotonic()
        key = end.sockaddr()
        known = self._decided.get(key)
        if known is not None and known[0] > now:
            return known[2]
        if key in self._held_back:
            self._hold_back(key, frame)
            return ASKED
        decision, own = decide(self._guest, self._held, end)
        if own:
            return self._remember(end, (decision, None, None), own)
        word = None
        if self._guest.point.consults(Verb.CONNECT):
            protocol, where = about(self._held, end)
            word = consulting.ask(self._guest, Verb.CONNECT, decision, protocol, where)
        if word is not None:
            consulting.then(self._guest, word, lambda said: self._told(end, said))
        else:
            found = self.find(end, decision)
            if isinstance(found, tuple):
                return self._remember(end, found)
            consulting.then(self._guest, found, lambda found: self._found(end, found))
        self._held_back[key] = []
        self._hold_back(key, frame)
        return ASKED

    def _hold_back(self, key: bytes, frame: Frame) -> None:
        """Keep a frame, as long as there are not too many: datagrams may get lost."""
        if sum(map(len, self._held_back.values())) < MOST_WAITING:
            self._held_back[key].append(frame)

    def _told(self, end: Endpoint, decision: Decision | None) -> None:
        """It is known what was decided about a destination; None: nothing, as another policy is in force."""
        found = None if decision is None or self._closed else self.find(end, decision)
        if found is None or isinstance(found, tuple):
            self._found(end, found)
        else:
            consulting.then(self._guest, found, lambda found: self._found(end, found))

    def _found(self, end: Endpoint, found: Found | None) -> None:
        """It is known what carries datagrams to a destination; None as for `_told`."""
        frames = self._held_back.pop(end.sockaddr(), [])
        if self._closed:
            return
        if found is not None:
            self._remember(end, found)
        for frame in frames:
            self._send(frame)  # what the buffer has no room for is lost

    def _remember(self, end: Endpoint, found: Found, own: bool = False) -> int:
        """Hold on to a decision about a destination, and record it; 0, or the errno of the refusal."""
        decision, network, _ = found
        by = None
        try:
            by = self._in(network) if network is not None else None
        except OSError as error:
            why = f"{decision.rule}: no socket there"
            number = error.errno or errno.EIO
            decision = replace(decision, allowed=False, error=number, rule=why)
        now, key = time.monotonic(), end.sockaddr()
        known = self._decided.get(key)
        if len(self._decided) >= REMEMBERED:
            del self._decided[next(iter(self._decided))]
        self._decided.pop(key, None)
        self._decided[key] = (now + HOLDS, end, decision.error, by)
        if known is None or known[2] != decision.error:
            self._guest.record_datagram(Verb.SEND, target(self._held, end), decision, own)
        return decision.error

    def _is_name_service(self, end: Endpoint) -> bool:
        return end.port == NAME_SERVICE and self._held.protocol in (0, socket.IPPROTO_UDP)

    def _writable(self) -> None:
        self._unblock()
        self._frames.resume()

    def _unblock(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._fd)

    # --- to the guest

    def _receive(self) -> None:
        """Give the guest what has arrived, as long as there is room in its ring."""
        for _ in range(TURN):
            if self._waiting is None:
                self._waiting = self._arrived()
                if self._waiting is None:
                    self._watch(True)
                    return
            if not self._frames.put(self._waiting):
                self._watch(False)
                return
            self._guest.counters.received += len(self._waiting.payload)
            self._waiting = None
        self._watch(True)

    def _arrived(self) -> Frame | None:
        room = min(LONGEST, self._frames.longest)
        informed = self._frames.informed
        while True:
            try:
                payload, control, flags, source = self._sock.recvmsg(room, ROOM if informed else 0)
            except BlockingIOError:
                return self._reported()
            except OSError as error:
                return self._reported() or Frame(b"", error=to_wire(error.errno or errno.EIO))
            if self._may_come(source):
                cut = bool(flags & socket.MSG_TRUNC)
                info = PacketInfo.told(control) if informed else None
                return Frame(payload, name_of(source), truncated=cut, info=info)

    def _may_come(self, source: tuple[str, int]) -> bool:
        """Answers may always; strangers where the guest may have a port of its own."""
        if self._by is not None:
            return False
        if self._peer is not None or self._held.protocol in (ICMP, ICMPV6):
            return True
        now = time.monotonic()
        if self._open[0] <= now:
            local = Endpoint.from_python(self._sock.getsockname())
            decision = listening.listen_decision(self._guest, self._held, local)
            self._open = now + HOLDS, decision.allowed
        if self._open[1]:
            return True
        known = self._decided.get(Endpoint.from_python(source).sockaddr())
        return known is not None and not known[2]

    def _failed_earlier(self, number: int) -> None:
        """A call told the failure of an earlier datagram."""
        report = self._reported()
        if report is None:
            self._frames.fail(number)
        while report is not None:
            self._frames.put(report)
            report = self._reported()

    def _reported(self) -> Frame | None:
        """The next failure that ICMP told: of sockets with IP_RECVERR, IPV6_RECVERR (ip(7))."""
        while True:
            try:
                quote, control, _, about = self._sock.recvmsg(QUOTED, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return None
            for level, name, raw in control:
                if (level, name) not in REPORTS.values():
                    continue
                number, origin, kind, code, info, _ = _REPORT.unpack_from(raw)
                if origin in _BY_ICMP:
                    mtu = info if number == errno.EMSGSIZE else 0
                    icmp = Icmp(kind, code, mtu, _sender(raw[_REPORT.size :]), quote)
                    return Frame(b"", name_of(about), error=to_wire(number), icmp=icmp)

    def _watch(self, wanted: bool) -> None:
        if wanted == self._reading:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(self._fd, self._receive)
        else:
            self._loop.remove_reader(self._fd)


def _sender(sockaddr: bytes) -> bytes:
    """16 bytes, IPv4 mapped; zeros where it is not known."""
    try:
        host = Endpoint.from_sockaddr(sockaddr).host
    except AddressError:
        return bytes(16)
    return packed(host)
