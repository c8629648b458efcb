"""For tests of names: a tiny DNS server (UDP and TCP on loopback, one thread, answers made by a
function), and the name files of a host that uses such servers."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import socket
import threading
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from xensock.stack.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Answer = Callable[[dns.message.Message, "Seen"], dns.message.Message | bytes | None]


@dataclass(frozen=True)
class Seen:
    """One query as it arrived."""

    wire: bytes
    tcp: bool
    source: tuple[str, int]

    @property
    def id(self) -> int:
        return int.from_bytes(self.wire[:2], "big")


def zone(*lines: str, rcode: int = dns.rcode.NXDOMAIN) -> Answer:
    """Answers from records in presentation form, `NAME TTL IN TYPE DATA`; CNAME chains followed;
    `rcode` for names that are not there."""
    records: dict[tuple[str, int], dns.rrset.RRset] = {}
    for line in lines:
        name, ttl, cls, kind, data = line.split(maxsplit=4)
        rrset = dns.rrset.from_text(name, int(ttl), cls, kind, data)
        key = (rrset.name.to_text().lower(), rrset.rdtype)
        records.setdefault(key, rrset).update(rrset)

    def answer(query: dns.message.Message, _seen: Seen) -> dns.message.Message:
        response = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        name = question.name.to_text().lower()
        known = {owner for owner, _ in records}
        if name not in known:
            response.set_rcode(rcode)
        while alias := records.get((name, dns.rdatatype.CNAME)):
            response.answer.append(alias)
            name = alias[0].target.to_text().lower()
        found = records.get((name, question.rdtype))
        if found:
            response.answer.append(found)
        return response

    return answer


class DnsPeer:
    """A DNS server on `host` and one port for UDP and TCP. `seen` lists every query; `answer` may
    be replaced at any time and returns a message, raw bytes, or None for silence."""

    def __init__(self, answer: Answer, host: str = "127.0.0.1", port: int = 0) -> None:
        self.answer = answer
        self.seen: list[Seen] = []
        self._arrived = threading.Condition()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._udp, self._tcp = self._bind(family, host, port)
        self.port = self._udp.getsockname()[1]
        self._stop, self._stopper = socket.socketpair()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @staticmethod
    def _bind(family: int, host: str, port: int) -> tuple[socket.socket, socket.socket]:
        address = socket.getaddrinfo(host, port, family, socket.SOCK_DGRAM)[0][4]
        for _ in range(20):
            udp = socket.socket(family, socket.SOCK_DGRAM)
            tcp = socket.socket(family, socket.SOCK_STREAM)
            try:
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tcp.bind(address)
                udp.bind((address[0], tcp.getsockname()[1], *address[2:]))
                tcp.listen()
                return udp, tcp
            except OSError:
                udp.close()
                tcp.close()
                if port:
                    raise
        raise OSError("no port is free for both UDP and TCP")

    def wait_for(self, count: int, timeout: float = 10) -> list[Seen]:
        """The queries seen, once there are `count` of them."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.seen) >= count, timeout), self.seen
            return list(self.seen)

    def __enter__(self) -> DnsPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopper.close()
        self._thread.join()
        for sock in (self._udp, self._tcp, self._stop):
            sock.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in (self._udp, self._tcp, self._stop):
                selector.register(sock, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stop:
                        return
                    if key.fileobj is self._udp:
                        wire, source = self._udp.recvfrom(65535)
                        for answer in self._respond(wire, False, source):
                            self._udp.sendto(answer, source)
                    else:
                        self._stream()

    def _stream(self) -> None:
        client, source = self._tcp.accept()
        with client, contextlib.suppress(OSError):
            client.settimeout(5)
            with client.makefile("rb") as reader:
                wire = reader.read(int.from_bytes(reader.read(2), "big"))
            for answer in self._respond(wire, True, source):
                client.sendall(len(answer).to_bytes(2, "big") + answer)

    def _respond(self, wire: bytes, tcp: bool, source: tuple[str, int]) -> Iterator[bytes]:
        seen = Seen(wire, tcp, source[:2])
        with self._arrived:
            self.seen.append(seen)
            self._arrived.notify_all()
        answer = self.answer(dns.message.from_wire(wire), seen)
        if isinstance(answer, dns.message.Message):
            yield answer.to_wire(max_size=65535)
        elif answer is not None:
            yield answer


def refused(query: dns.message.Message, _seen: Seen) -> dns.message.Message:
    """Answers REFUSED, as a server does that serves others only."""
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.REFUSED)
    return response


def silent(_query: dns.message.Message, _seen: Seen) -> None:
    """Never answers."""


def truncating(answer: Answer) -> Answer:
    """As `answer`, but UDP gets only an empty message with TC."""

    def cut(query: dns.message.Message, seen: Seen) -> dns.message.Message | bytes | None:
        if seen.tcp:
            return answer(query, seen)
        response = dns.message.make_response(query, recursion_available=True)
        response.flags |= dns.flags.TC
        return response

    return cut


class Host:
    """Name files of a host whose DNS servers listen on one port of several loopback addresses."""

    def __init__(self, path: Path, port: int) -> None:
        self.resolv_conf, self.hosts, self.nsswitch = path / "resolv", path / "hosts", path / "nss"
        self.hosts.write_text("")
        self.nsswitch.write_text("hosts: files dns\n")
        self.port = port
        self.nss: dict[str, tuple] = {}
        self.nss_asked: list[str] = []

    def servers(self, *servers: str, options: str = "timeout:5 attempts:1") -> Host:
        lines = [f"nameserver {server}" for server in servers] + [f"options {options}"]
        self.resolv_conf.write_text("\n".join(lines) + "\n")
        return self

    def ask_nss(self, name: str) -> tuple:
        self.nss_asked.append(name)
        if name not in self.nss:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return self.nss[name]

    def resolver(self) -> Resolver:
        files = (str(self.resolv_conf), str(self.hosts), str(self.nsswitch))
        return Resolver(*files, port=self.port, ask=self.ask_nss)


def ask(resolver: Resolver, name: str, kind: str = "A", server: str | None = None, **options):
    """Ask one question and check that the reply belongs to it."""
    query = dns.message.make_query(name, kind, **options)
    asked = ip_address(server) if server else None
    response = dns.message.from_wire(asyncio.run(resolver.query(query.to_wire(), asked)))
    assert query.is_response(response)
    return response


def answers(response: dns.message.Message) -> list[str]:
    return sorted(rd.to_text() for rrset in response.answer for rd in rrset)


# The zone of a host's name server, and what another one says instead.
WEB = zone(
    "web.test. 300 IN A 192.0.2.1",
    "web.test. 300 IN AAAA 2001:db8::1",
    "web.test. 300 IN TXT hello",
    "www.test. 60 IN CNAME web.test.",
)
OTHER = zone("web.test. 300 IN A 192.0.2.2")
