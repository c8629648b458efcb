"""For tests of the guest's DNS server: the server itself, and the guest's side of it."""

from __future__ import annotations

import contextlib
import socket

import dns.message

from dnskit import DnsPeer, zone
from xensock.policy.names import Names
from xensock.policy.policy import Policy
from xensock.stack.resolver import Resolver
from xensock.supervisor.dns import DnsServer

WEB = zone(
    "web.test. 300 IN A 192.0.2.1",
    "web.test. 300 IN A 192.0.2.2",
    "web.test. 300 IN AAAA 2001:db8::1",
    "web.test. 300 IN TXT hello",
    "www.test. 60 IN CNAME cdn.test.",
    "cdn.test. 300 IN CNAME edge.test.",
    "edge.test. 30 IN A 192.0.2.3",
    "loop.test. 30 IN CNAME loop2.test.",
    *(f"big.test. 60 IN A 192.0.2.{number}" for number in range(100)),
)


class Guest:
    """A server for a guest, and the guest's side of it."""

    def __init__(self, path, peer: DnsPeer, allow=(), deny=(), port=0, **options) -> None:
        self.peer = peer
        self.hosts, self.resolv_conf = path / "hosts", path / "resolv.conf"
        self.hosts.write_text("192.0.2.9 files.test\n")
        self.resolv_conf.write_text("nameserver 127.0.0.1\noptions timeout:2 attempts:1\n")
        nsswitch = path / "nsswitch.conf"
        nsswitch.write_text("hosts: files dns\n")
        files = (str(self.resolv_conf), str(self.hosts), str(nsswitch))
        self.names = Names()
        self.records = []
        self.server = DnsServer(
            "g1",
            Resolver(*files, port=peer.port),
            Policy.parse(allow, deny),
            self.names,
            self.records.append,
            **options,
        )
        udp = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
        udp[0].bind(("0.0.0.0", port))
        self.port = udp[0].getsockname()[1]
        if socket.has_ipv6:
            with contextlib.suppress(OSError):
                six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
                udp.append(six)
                six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                six.bind(("::", self.port))
        self.server.start(udp)

    def client(self, server: str = "127.0.0.1") -> socket.socket:
        """A socket that hears only what comes from the address it asks."""
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.settimeout(10)
        sock.connect((server, self.port))
        return sock

    def ask(self, name: str, kind: str = "A", server: str = "127.0.0.1", **options):
        query = dns.message.make_query(name, kind, **options)
        with self.client(server) as sock:
            sock.send(query.to_wire())
            response = dns.message.from_wire(sock.recv(65535))
        assert query.is_response(response)
        return response

    def stream(self) -> socket.socket:
        """A DNS-over-TCP connection to the server."""
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        self.server.serve_stream(theirs)
        return ours


def send(sock: socket.socket, message: bytes) -> None:
    sock.sendall(len(message).to_bytes(2, "big") + message)


def receive(sock: socket.socket) -> dns.message.Message:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = sock.recv(size - len(data))
            assert more, "the server hung up"
            data += more
        return data

    return dns.message.from_wire(exactly(int.from_bytes(exactly(2), "big")))


def moody(query, seen):
    """Answers nothing that has "slow" in its name."""
    return None if "slow" in query.question[0].name.to_text() else WEB(query, seen)
