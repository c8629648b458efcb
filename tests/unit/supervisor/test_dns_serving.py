from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from ipaddress import ip_address

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnsguest import WEB, Guest, moody, receive, send
from dnskit import DnsPeer, answers, silent


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


def test_a_dot_within_a_label_fools_no_rule(make, peer) -> None:
    guest = make(allow=["*.ok.test"])
    name = dns.name.Name((b"evil.ok", b"test", b""))
    assert guest.ask(name).rcode() == dns.rcode.NXDOMAIN
    assert not peer.seen


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
