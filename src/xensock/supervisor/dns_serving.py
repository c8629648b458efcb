"""The event loop of the guest's DNS server: datagrams and streams in, decided answers out.

Rules
- A guest's bytes are hostile: they are parsed once (dnspython), and what is no plain question of
  class IN is answered here (FORMERR, NOTIMP, REFUSED) or dropped, never passed on.
- Every question is its own task, so that none waits for another one's server; their number is
  bounded, as are streams and what is under way on each.
- `Names.learn` comes before the answer leaves: the guest may connect at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, cast

import dns.exception
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype

from xensock.calls import Record, Verb
from xensock.stack import resolver_wire as wire
from xensock.supervisor.dns import IP_PKTINFO

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from xensock.calls import IPAddress
    from xensock.calls.record import Outcome, Path
    from xensock.supervisor.dns import DnsServer

MAX_STREAMS = 128
MAX_PIPELINED = 64
BATCH = 32  # datagrams read before other work gets its turn
PLAIN_UDP = 512  # bytes of an answer without EDNS (RFC 1035, 4.2.1)
_QUERY_BYTES = 4096
_MAX_CHAIN = 16

# Not records but requests to the server itself, or streams of messages: OPT, TKEY, TSIG, IXFR,
# AXFR, MAILB, MAILA.
_META = frozenset({41, 249, 250, 251, 252, 253, 254})
_ANY = 255

_PKTINFO = struct.Struct("=I4s4s")  # struct in_pktinfo, ip(7)
_PKTINFO6 = struct.Struct("=16sI")  # struct in6_pktinfo, ipv6(7)

_ERRORS = {wire.NXDOMAIN: errno.ENOENT, wire.SERVFAIL: errno.EAGAIN, wire.REFUSED: errno.EACCES}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """An answer and how it came about, for the record."""

    answer: bytes
    decision: Outcome
    rule: str
    path: Path
    addresses: int = 0
    hint: str = ""


def serve(server: DnsServer, udp: tuple[socket.socket, ...], wake: int) -> None:
    """Serve until `server.closing`; `wake` (an eventfd) tells of new streams and of closing."""
    asyncio.run(_Serving(server, udp, wake).run())


class _Serving:
    def __init__(self, server: DnsServer, udp: tuple[socket.socket, ...], wake: int) -> None:
        self._server = server
        self._udp = udp
        self._wake = wake
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams = 0
        self._under_way = 0

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stopped = loop.create_future()
        for sock in self._udp:
            loop.add_reader(sock, self._readable, sock)
        loop.add_reader(self._wake, self._woken, stopped)
        try:
            await stopped
        finally:
            for sock in self._udp:
                loop.remove_reader(sock)
            loop.remove_reader(self._wake)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _woken(self, stopped: asyncio.Future[None]) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        if self._server.closing:
            if not stopped.done():
                stopped.set_result(None)
            return
        while self._server.streams:
            sock = self._server.streams.popleft()
            if self._streams >= MAX_STREAMS:
                sock.close()
                continue
            self._streams += 1
            self._spawn(self._stream(sock))

    # Datagrams

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                message, control, flags, client = sock.recvmsg(_QUERY_BYTES, 256)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("receiving a DNS query: %s", error)
                return
            asked = _asked(control)
            if flags & socket.MSG_TRUNC or asked is None:
                continue
            address, back = asked
            reply = self._datagram_replier(sock, back, client)
            self._spawn(self._datagram(message, address, reply))

    def _datagram_replier(
        self, sock: socket.socket, back: list[tuple[int, int, bytes]], client: Any
    ) -> Callable[[bytes], None]:
        def reply(answer: bytes) -> None:
            try:
                sock.sendmsg([answer], back, 0, client)
            except OSError as error:  # its buffer is full, or the guest's network is gone
                log.debug("answering a DNS query: %s", error)

        return reply

    async def _datagram(
        self, message: bytes, address: IPAddress, reply: Callable[[bytes], None]
    ) -> None:
        answer = await self._answer(message, address, datagram=True)
        if answer is not None:
            reply(answer)

    # Streams

    async def _stream(self, sock: socket.socket) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            address = _local_address(sock)
            sock.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=sock)
            await self._pipelined(reader, writer, address)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            log.debug("a DNS stream ended: %s", error)
        finally:
            self._streams -= 1
            if writer is None:
                sock.close()
            else:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def _pipelined(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: IPAddress | None
    ) -> None:
        """Answer the questions of a stream, each when its answer is there (RFC 7766, 6.2.1.1).

        Raises IncompleteReadError at its end, TimeoutError when it is silent for too long.
        """
        room = asyncio.Semaphore(MAX_PIPELINED)
        writing = asyncio.Lock()
        pending: set[asyncio.Task[None]] = set()

        async def one(message: bytes) -> None:
            try:
                answer = await self._answer(message, address, datagram=False)
                if answer is None:
                    writer.transport.abort()  # not DNS: there is nothing to answer
                    return
                async with writing, asyncio.timeout(self._server.idle):
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
            except (OSError, TimeoutError):  # the client is gone, or does not read its answers
                writer.transport.abort()
            finally:
                room.release()

        try:
            while True:
                await room.acquire()
                message = await self._next(reader, pending)
                task = asyncio.get_running_loop().create_task(one(message))
                pending.add(task)
                task.add_done_callback(pending.discard)
        except (asyncio.IncompleteReadError, TimeoutError):
            # A client may say that it asks no more and still read (half-close).
            await asyncio.gather(*pending, return_exceptions=True)
            raise
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _next(self, reader: asyncio.StreamReader, pending: set[asyncio.Task[None]]) -> bytes:
        while True:
            try:
                async with asyncio.timeout(self._server.idle):
                    length = await reader.readexactly(2)
                break
            except TimeoutError:
                if not pending:
                    raise
        async with asyncio.timeout(self._server.idle):
            return await reader.readexactly(int.from_bytes(length, "big"))

    # Questions

    async def _answer(
        self, message: bytes, address: IPAddress | None, *, datagram: bool
    ) -> bytes | None:
        """The answer to a message; None when it deserves none."""
        if len(message) < wire.HEADER or wire.head(message)[1] & wire.QR:
            return None
        if wire.head(message)[1] & wire.OPCODE:
            return wire.reply(message, None, wire.NOTIMP)
        try:
            question = wire.read_question(message)
            query = dns.message.from_wire(message)
        except (wire.WireError, dns.exception.DNSException, ValueError):
            return wire.reply(message, None, wire.FORMERR)
        if query.answer or query.authority:
            return wire.reply(message, None, wire.FORMERR)
        if self._under_way >= self._server.limit:
            busy = f"limit: {self._server.limit} questions are under way"
            outcome = _Outcome(wire.reply(message, question, wire.SERVFAIL), "deny", busy, "")
            self._record(question, outcome, time.time(), 0.0)
            return outcome.answer
        started, clock = time.time(), time.monotonic()
        self._under_way += 1
        try:
            outcome = await self._decide(message, question, address)
        except Exception:
            # A fault of ours must not be silent for the guest, nor end its other questions.
            log.exception("resolving %s", question.name)
            outcome = _Outcome(wire.reply(message, question, wire.SERVFAIL), "", "", "")
        finally:
            self._under_way -= 1
        self._record(question, outcome, started, time.monotonic() - clock)
        answer = outcome.answer
        if datagram:
            room = max(PLAIN_UDP, query.payload) if query.edns >= 0 else PLAIN_UDP
            if len(answer) > room:
                return wire.reply(message, question, wire.rcode(answer), flags=wire.TC)
        return answer

    async def _decide(
        self, message: bytes, question: wire.Question, address: IPAddress | None
    ) -> _Outcome:
        if question.cls != wire.IN or question.type in _META:
            what = "zone transfers and classes other than IN are not passed on"
            return _Outcome(wire.reply(message, question, wire.REFUSED), "deny", what, "")
        own = _special(message, question)
        if own is not None:
            return own
        decision = self._server.policy.resolve(question.name)
        if not decision.allowed:
            answer = wire.reply(message, question, wire.NXDOMAIN)
            return _Outcome(answer, "deny", decision.rule, "", hint=decision.hint)
        answer = await self._server.resolver.query(message, address)
        found = 0
        if question.type in (wire.A, wire.AAAA, _ANY) and wire.rcode(answer) == wire.NOERROR:
            try:
                addresses, ttl = _addresses(answer, question)
            except (dns.exception.DNSException, ValueError):
                if not wire.head(answer)[1] & wire.TC:
                    # What cannot be read cannot be remembered, and would be refused later.
                    answer = wire.reply(message, question, wire.SERVFAIL)
                addresses, ttl = [], 0
            found = len(addresses)
            if addresses:
                self._server.names.learn(question.name, addresses, ttl)
        return _Outcome(answer, "allow", decision.rule, "dns", found)

    def _record(
        self, question: wire.Question, outcome: _Outcome, started: float, duration: float
    ) -> None:
        code = wire.rcode(outcome.answer)
        error = 0 if code == wire.NOERROR else _ERRORS.get(code, errno.EIO)
        target = question.name
        if question.type not in (wire.A, wire.AAAA):
            target += f" {dns.rdatatype.to_text(dns.rdatatype.RdataType.make(question.type))}"
        self._server.record(
            Record(
                time=started,
                guest=self._server.guest,
                pid=0,  # a datagram does not say who sent it
                program="",
                verb=Verb.RESOLVE,
                target=target,
                name=question.name,
                decision=outcome.decision,
                rule=outcome.rule,
                hint=outcome.hint,
                datapath=outcome.path,
                result=-1 if error else outcome.addresses,
                error=error,
                duration=duration,
            )
        )


def _asked(
    control: list[tuple[int, int, bytes]],
) -> tuple[IPAddress, list[tuple[int, int, bytes]]] | None:
    """The address that a datagram was sent to, and the control message that makes the reply leave
    from there; None for groups, which nobody asks."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == IP_PKTINFO:
            _, _, packed = _PKTINFO.unpack_from(data)
            address: IPAddress = IPv4Address(packed)
            back = _PKTINFO.pack(0, packed, bytes(4))
        elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            packed, index = _PKTINFO6.unpack_from(data)
            address = six = IPv6Address(packed)
            # Only a link-local address needs its interface; others leave where the route says.
            back = _PKTINFO6.pack(packed, index if six.is_link_local else 0)
            address = six.ipv4_mapped or six
        else:
            continue
        if address.is_multicast or address == IPv4Address("255.255.255.255"):
            return None
        return address, [(level, kind, back)]
    return None


def _local_address(sock: socket.socket) -> IPAddress | None:
    """The server address that the client of a stream connected to, if it is an internet one."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    address = ip_address(str(sock.getsockname()[0]).partition("%")[0])
    return address.ipv4_mapped or address if address.version == 6 else address


def _special(message: bytes, question: wire.Question) -> _Outcome | None:
    """The answer to a special-use name, which no server is asked for."""
    top = question.labels[-1] if question.labels else b""
    if top == b"localhost":  # RFC 6761, 6.3: always loopback, which is the guest's own
        records = {
            wire.A: [(wire.A, IPv4Address("127.0.0.1").packed)],
            wire.AAAA: [(wire.AAAA, IPv6Address("::1").packed)],
        }.get(question.type, [])
        answer = wire.reply(message, question, wire.NOERROR, records, ttl=86400)
        return _Outcome(answer, "guest", "localhost is the guest's own", "guest", len(records))
    if top in (b"invalid", b"onion"):  # RFC 6761, 6.4; RFC 7686
        answer = wire.reply(message, question, wire.NXDOMAIN)
        return _Outcome(answer, "guest", f".{top.decode()} names do not exist in DNS", "guest")
    return None


def _addresses(answer: bytes, question: wire.Question) -> tuple[list[IPAddress], int]:
    """All addresses that an answer gives the question's name, CNAME records followed, and for how
    many seconds they hold. Raises DNSException or ValueError for what cannot be read."""
    message = dns.message.from_wire(answer, ignore_trailing=True)
    name = dns.name.Name((*question.labels, b""))
    found: list[IPAddress] = []
    ttl = 0x7FFFFFFF
    for _ in range(_MAX_CHAIN):
        for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            records = message.get_rrset(message.answer, name, dns.rdataclass.IN, kind)
            if records is not None:
                found += [ip_address(record.address) for record in records]
                ttl = min(ttl, records.ttl)
        alias = message.get_rrset(message.answer, name, dns.rdataclass.IN, dns.rdatatype.CNAME)
        if alias is None:
            break
        ttl = min(ttl, alias.ttl)
        name = cast("dns.name.Name", alias[0].target)
    return found, ttl
