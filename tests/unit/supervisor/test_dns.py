from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from ipaddress import ip_address
from pathlib import Path

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnskit import DnsPeer, silent, truncating, zone
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


@pytest.fixture
def peer():
    with DnsPeer(WEB) as peer:
        yield peer


@pytest.fixture
def make(tmp_path, peer):
    guests = []

    def make(**options) -> Guest:
        guests.append(Guest(tmp_path, peer, **options))
        return guests[-1]

    yield make
    for guest in guests:
        guest.server.close()


@pytest.fixture
def guest(make) -> Guest:
    return make()


def answers(response: dns.message.Message) -> list[str]:
    return sorted(rd.to_text() for rrset in response.answer for rd in rrset)


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


def test_names_resolve_and_their_addresses_are_known_before_the_answer(guest) -> None:
    assert answers(guest.ask("web.test")) == ["192.0.2.1", "192.0.2.2"]
    assert guest.names.of(ip_address("192.0.2.2")) == ("web.test",)
    assert answers(guest.ask("Web.Test", "AAAA")) == ["2001:db8::1"]
    assert guest.names.of(ip_address("2001:db8::1")) == ("web.test",)
    assert answers(guest.ask("files.test")) == ["192.0.2.9"]
    assert guest.names.of(ip_address("192.0.2.9")) == ("files.test",)
    assert answers(guest.ask("web.test", "TXT")) == ['"hello"']
    assert guest.ask("no.test").rcode() == dns.rcode.NXDOMAIN


def test_the_asked_name_learns_the_addresses_at_the_end_of_its_aliases(guest) -> None:
    assert answers(guest.ask("www.test")) == ["192.0.2.3", "cdn.test.", "edge.test."]
    assert guest.names.of(ip_address("192.0.2.3")) == ("www.test",)


def test_addresses_of_other_names_in_an_answer_are_not_learned(guest, peer) -> None:
    """A server answers for the name that was asked, not for others it would like to be."""

    def lying(query, seen):
        response = WEB(query, seen)
        response.answer.append(dns.rrset.from_text("bank.test.", 60, "IN", "A", "192.0.2.66"))
        response.additional.append(dns.rrset.from_text("web.test.", 60, "IN", "A", "192.0.2.67"))
        return response

    peer.answer = lying
    guest.ask("web.test")
    assert guest.names.of(ip_address("192.0.2.1")) == ("web.test",)
    assert guest.names.of(ip_address("192.0.2.66")) == ()
    assert guest.names.of(ip_address("192.0.2.67")) == ()


def test_a_loop_of_aliases_ends(guest, peer) -> None:
    def loop(query, _seen):
        response = dns.message.make_response(query)
        for one, other in (("a.test.", "b.test."), ("b.test.", "a.test.")):
            response.answer.append(dns.rrset.from_text(one, 60, "IN", "CNAME", other))
        return response

    peer.answer = loop
    assert answers(guest.ask("a.test")) == ["a.test.", "b.test."]


@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "ANY", "HTTPS"])
def test_a_refused_name_does_not_exist_and_is_asked_nowhere(make, peer, kind) -> None:
    guest = make(allow=["web.test:80"])
    assert guest.ask("secret.evil.test", kind).rcode() == dns.rcode.NXDOMAIN
    assert not peer.seen
    record = guest.records[0]
    assert (record.verb, record.name, record.decision) == ("resolve", "secret.evil.test", "deny")
    assert (record.result, record.error) == (-1, errno.ENOENT)
    assert record.rule == "default: only the names in --allow resolve"
    assert record.hint == "--allow secret.evil.test"
    assert guest.ask("web.test").rcode() == dns.rcode.NOERROR


def test_a_dot_within_a_label_fools_no_rule(make, peer) -> None:
    guest = make(allow=["*.ok.test"])
    name = dns.name.Name((b"evil.ok", b"test", b""))
    assert guest.ask(name).rcode() == dns.rcode.NXDOMAIN
    assert not peer.seen


def test_every_question_is_recorded_once(guest) -> None:
    guest.ask("web.test")
    guest.ask("no.test")
    guest.ask("web.test", "TXT")
    good, bad, text = guest.records
    assert (good.verb, good.target, good.name) == ("resolve", "web.test", "web.test")
    assert (good.guest, good.decision, good.datapath) == ("g1", "allow", "dns")
    assert (good.result, good.error, good.rule) == (2, 0, "default: names resolve")
    assert abs(good.time - time.time()) < 60
    assert 0 < good.duration < 10
    assert (bad.decision, bad.result, bad.error) == ("allow", -1, errno.ENOENT)
    assert (text.target, text.name, text.result) == ("web.test TXT", "web.test", 0)


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.53", "127.99.3.4", "::1"])
def test_the_reply_comes_from_the_address_that_was_asked(guest, server) -> None:
    try:
        with guest.client(server):
            pass
    except OSError:
        pytest.skip("no IPv6 here")
    assert answers(guest.ask("web.test", server=server)) == ["192.0.2.1", "192.0.2.2"]


def test_the_hosts_server_of_the_same_address_is_asked_first(guest, peer) -> None:
    """A guest that tries its servers one after the other behaves as natively."""
    guest.resolv_conf.write_text("nameserver 127.0.0.1\nnameserver 127.0.0.2\n")
    other = zone("web.test. 300 IN A 192.0.2.200")
    with DnsPeer(other, "127.0.0.2", peer.port):
        assert answers(guest.ask("web.test", server="127.0.0.2")) == ["192.0.2.200"]
        assert answers(guest.ask("web.test", server="127.0.0.1")) == ["192.0.2.1", "192.0.2.2"]


def test_localhost_is_the_guests_own(make, peer) -> None:
    guest = make(allow=["web.test"])
    assert answers(guest.ask("localhost")) == ["127.0.0.1"]
    assert answers(guest.ask("db.LOCALHOST", "AAAA")) == ["::1"]
    response = guest.ask("localhost", "TXT")
    assert (response.rcode(), response.answer) == (dns.rcode.NOERROR, [])
    assert guest.ask("x.invalid").rcode() == dns.rcode.NXDOMAIN
    assert guest.ask("x.onion").rcode() == dns.rcode.NXDOMAIN
    assert {record.decision for record in guest.records} == {"guest"}
    assert not peer.seen


def test_answers_too_long_for_a_datagram_are_truncated(guest) -> None:
    response = guest.ask("big.test")
    assert response.flags & dns.flags.TC
    assert not response.answer
    response = guest.ask("big.test", use_edns=0, payload=1232)
    assert response.flags & dns.flags.TC
    assert response.edns == 0
    response = guest.ask("big.test", use_edns=0, payload=4096)
    assert not response.flags & dns.flags.TC
    assert len(answers(response)) == 100


def test_a_stream_carries_long_answers(guest, peer) -> None:
    peer.answer = truncating(WEB)
    with guest.stream() as sock:
        send(sock, dns.message.make_query("big.test", "A").to_wire())
        assert len(answers(receive(sock))) == 100
        send(sock, dns.message.make_query("files.test", "A").to_wire())
        assert answers(receive(sock)) == ["192.0.2.9"]


def test_a_stream_over_tcp(guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), timeout=10)
        guest.server.serve_stream(listener.accept()[0])
        with ours:
            send(ours, dns.message.make_query("web.test", "A").to_wire())
            assert answers(receive(ours)) == ["192.0.2.1", "192.0.2.2"]


def moody(query, seen):
    """Answers nothing that has "slow" in its name."""
    return None if "slow" in query.question[0].name.to_text() else WEB(query, seen)


def test_pipelined_questions_are_answered_when_ready_even_after_half_close(guest, peer) -> None:
    peer.answer = moody
    with guest.stream() as sock:
        for number, name in enumerate(["slow.test", "web.test", "no.test"]):
            send(sock, dns.message.make_query(name, "A", id=number).to_wire())
        sock.shutdown(socket.SHUT_WR)
        replies = {reply.id: reply.rcode() for reply in (receive(sock) for _ in range(3))}
        assert list(replies)[-1] == 0  # the slow one delayed nobody
        assert replies == {
            0: dns.rcode.SERVFAIL,
            1: dns.rcode.NOERROR,
            2: dns.rcode.NXDOMAIN,
        }
        assert sock.recv(1) == b""


@pytest.mark.parametrize("begun", [b"", b"\0", b"\0\x20abc"])
def test_a_silent_stream_is_closed(make, begun) -> None:
    guest = make(idle=0.2)
    with guest.stream() as sock:
        sock.sendall(begun)
        assert sock.recv(1) == b""


def test_a_stream_that_is_not_dns_is_closed(guest) -> None:
    with guest.stream() as sock:
        sock.sendall(b"\0\x04GET ")
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""


def test_a_slow_server_delays_nobody_and_questions_are_bounded(make, peer) -> None:
    peer.answer = moody
    guest = make(limit=20)
    guest.resolv_conf.write_text("nameserver 127.0.0.1\noptions timeout:4 attempts:1\n")
    with guest.client() as slow:
        for number in range(19):
            slow.send(dns.message.make_query(f"slow{number}.test", "A").to_wire())
        peer.wait_for(19)
        started = time.monotonic()
        assert guest.ask("web.test").rcode() == dns.rcode.NOERROR
        slow.send(dns.message.make_query("slow19.test", "A").to_wire())
        peer.wait_for(21)
        assert guest.ask("web.test").rcode() == dns.rcode.SERVFAIL  # at once
        assert time.monotonic() - started < 3.5
        assert guest.records[-1].error == errno.EAGAIN
        assert guest.records[-1].rule == "limit: 20 questions are under way"
        for _ in range(20):
            assert dns.message.from_wire(slow.recv(512)).rcode() == dns.rcode.SERVFAIL
    assert guest.ask("web.test").rcode() == dns.rcode.NOERROR


def test_what_is_no_plain_question_is_answered_with_an_error(guest, peer) -> None:
    assert guest.ask("web.test", "AXFR").rcode() == dns.rcode.REFUSED
    assert guest.ask("version.bind", "TXT", rdclass="CH").rcode() == dns.rcode.REFUSED
    header = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0)
    cases = {
        header + b"\3web": dns.rcode.FORMERR,
        header + b"\xc0\x0c\0\1\0\1": dns.rcode.FORMERR,
        header[:4] + bytes(8): dns.rcode.FORMERR,
        header[:4] + b"\0\2" + bytes(6) + b"\0\0\1\0\1" * 2: dns.rcode.FORMERR,
        header + b"\0\0\1\0\1trailing": dns.rcode.FORMERR,
        header[:2] + b"\x28\0" + header[4:] + b"\0\0\1\0\1": dns.rcode.NOTIMP,
    }
    with guest.client() as sock:
        for raw, expected in cases.items():
            sock.send(raw)
            reply = sock.recv(512)
            assert reply[:2] == b"\0\7"
            assert reply[3] & 15 == expected, raw
    assert not peer.seen


def test_an_answer_that_cannot_be_read_is_not_passed_on(guest, peer) -> None:
    peer.answer = lambda query, seen: WEB(query, seen).to_wire()[:-3]
    assert guest.ask("web.test").rcode() == dns.rcode.SERVFAIL
    assert guest.names.of(ip_address("192.0.2.1")) == ()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    with DnsPeer(silent) as peer:
        guest = Guest(tmp_path_factory.mktemp("fuzz"), peer, limit=4, idle=1)
        guest.resolv_conf.write_text("nameserver 127.0.0.254\n")  # nothing listens there
        yield guest
        guest.server.close()


query_like = st.builds(
    lambda number, flags, counts, rest: struct.pack("!HH4H", number, flags, *counts) + rest,
    st.integers(0, 0xFFFF),
    st.sampled_from([0, 0x0100, 0x0120, 0x8000, 0x2800, 0x7800]),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.one_of(
        st.binary(max_size=100),
        st.binary(max_size=60).map(lambda tail: b"\3web\4test\0\0\1\0\1" + tail),
        st.binary(max_size=60).map(lambda tail: b"\0\0\1\0\1\0\0\x29" + tail),
    ),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=600), query_like))
def test_arbitrary_datagrams_never_harm_the_server(fuzzed, message: bytes) -> None:
    with fuzzed.client() as sock:
        sock.send(message)
        marker = dns.message.make_query("localhost", "A", id=0xABCD)
        sock.send(marker.to_wire())
        while True:
            reply = sock.recv(65535)
            assert len(reply) >= 12
            if reply[12:22] == b"\x09localhost":
                break
        assert answers(dns.message.from_wire(reply)) == ["127.0.0.1"]


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300))
def test_arbitrary_streams_never_harm_the_server(fuzzed, data: bytes) -> None:
    with fuzzed.stream() as sock, contextlib.suppress(OSError):  # it may hang up at any byte
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65535):
            pass
    assert answers(fuzzed.ask("localhost")) == ["127.0.0.1"]


def test_closing_ends_everything(make) -> None:
    guest = make()
    waiting = guest.stream()
    guest.ask("web.test")
    guest.server.close()
    guest.server.close()
    with waiting, contextlib.suppress(ConnectionResetError):
        assert waiting.recv(1) == b""
    with guest.stream() as late:
        assert late.recv(1) == b""
    assert guest.server._thread not in threading.enumerate()


def test_closing_a_server_that_was_asked_nothing(make) -> None:
    make().server.close()


def test_closing_amid_questions_under_way(make, peer) -> None:
    peer.answer = moody
    guest = make()
    guest.resolv_conf.write_text("nameserver 127.0.0.1\noptions timeout:4 attempts:1\n")
    with guest.client() as sock, guest.stream() as stream:
        sock.send(dns.message.make_query("slow1.test", "A").to_wire())
        send(stream, dns.message.make_query("slow2.test", "A").to_wire())
        peer.wait_for(2)
        started = time.monotonic()
        guest.server.close()
        assert time.monotonic() - started < 3.5


NAMESPACE = """
ip link set lo up
ip link add ours type veth peer name theirs
ip addr add 10.0.2.100/24 dev ours
ip link set ours up
ip link set theirs up
ip route add local default dev lo
exec "$@"
"""

PROGRAMS = """
import subprocess, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_dns
from dnskit import DnsPeer
with DnsPeer(test_dns.WEB, "127.0.0.1") as peer, tempfile.TemporaryDirectory() as path:
    guest = test_dns.Guest(Path(path), peer, port=53)
    for command in (
        ["getent", "ahostsv4", "www.test"],
        [sys.executable, "-c", "import socket; print(socket.gethostbyname('edge.test'))"],
        ["dig", "+short", "+tries=1", "@198.51.100.53", "web.test", "TXT"],
    ):
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=30)
        except FileNotFoundError:
            continue
        print(command[0].rpartition("/")[2], "->", run.stdout.split()[0] if run.stdout else run)
    guest.server.close()
"""


@pytest.mark.skipif(not shutil.which("ip"), reason="needs ip(8)")
def test_programs_ask_whatever_server_and_get_the_answer() -> None:
    """In a namespace where every address is local, as a guest's: libc asks the servers of this
    machine's resolv.conf, which are not reachable here, and dig one of its own choice."""
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-ec", NAMESPACE, "sh"]
    here = Path(__file__).parent
    run = subprocess.run(
        [*command, sys.executable, "-c", PROGRAMS, str(here)],
        capture_output=True,
        text=True,
        timeout=100,
        env={"PYTHONPATH": str(here.parents[1]), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    if "unshare:" in run.stderr:
        pytest.skip(f"no user namespaces here: {run.stderr}")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "getent -> 192.0.2.3"
    assert lines[1].endswith(" -> 192.0.2.3")
    assert lines[2:] in ([], ['dig -> "hello"'])
