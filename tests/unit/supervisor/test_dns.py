from __future__ import annotations

import contextlib
import errno
import shutil
import socket
import subprocess
import sys
import threading
import time
from ipaddress import ip_address
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from dnsguest import WEB, moody, receive, send
from dnskit import DnsPeer, answers, truncating, zone


def test_names_resolve_and_their_addresses_are_known_before_the_answer(guest) -> None:
    assert answers(guest.ask("web.test")) == ["192.0.2.1", "192.0.2.2"]
    assert guest.names.of(ip_address("192.0.2.2")) == ("web.test",)
    assert answers(guest.ask("Web.Test", "AAAA")) == ["2001:db8::1"]
    assert guest.names.of(ip_address("2001:db8::1")) == ("web.test",)
    assert answers(guest.ask("files.test")) == ["192.0.2.9"]
    assert guest.names.of(ip_address("192.0.2.9")) == ("files.test",)
    assert answers(guest.ask("web.test", "TXT")) == ['"hello"']
    assert guest.ask("no.test").rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "ANY", "HTTPS"])
def test_a_refused_name_does_not_exist_and_is_asked_nowhere(make, peer, kind) -> None:
    guest = make(allow=["web.test:80"])
    assert guest.ask("secret.evil.test", kind).rcode() == dns.rcode.NXDOMAIN
    assert not peer.seen
    record = guest.records[0]
    assert (record.verb, record.name, record.decision) == ("resolve", "secret.evil.test", "deny")
    assert (record.result, record.error) == (-1, errno.ENOENT)
    decision = guest.server.policy.resolve("secret.evil.test")
    assert (record.rule, record.hint) == (decision.rule, decision.hint)
    assert "secret.evil.test" in record.hint
    assert guest.ask("web.test").rcode() == dns.rcode.NOERROR


def test_every_question_is_recorded_once(guest) -> None:
    guest.ask("web.test")
    guest.ask("no.test")
    guest.ask("web.test", "TXT")
    good, bad, text = guest.records
    assert (good.verb, good.target, good.name) == ("resolve", "web.test", "web.test")
    assert (good.guest, good.decision, good.datapath) == ("g1", "allow", "dns")
    assert (good.result, good.error, good.rule) == (
        2,
        0,
        guest.server.policy.resolve("web.test").rule,
    )
    assert abs(good.time - time.time()) < 60
    assert 0 < good.duration < 10
    assert (bad.decision, bad.result, bad.error) == ("allow", -1, errno.ENOENT)
    assert (text.target, text.name, text.result) == ("web.test TXT", "web.test", 0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("secret.evil.test", kind) for kind in ("TXT", "MX", "SRV", "NS", "SVCB", "NULL")),
        *(("1.2.0.192.in-addr.arpa", "PTR"), ("_443._tcp.web.test", "SRV"), ("test", "SOA")),
    ],
)
def test_no_type_of_record_carries_a_name_out_and_refusals_are_counted(
    make, peer, name, kind
) -> None:
    guest = make(allow=["web.test"])
    assert guest.ask(name, kind).rcode() == dns.rcode.NXDOMAIN
    with guest.stream() as sock:
        send(sock, dns.message.make_query(name, kind).to_wire())
        assert receive(sock).rcode() == dns.rcode.NXDOMAIN
    assert answers(guest.ask("web.test", "TXT")) == ['"hello"']
    assert [seen.wire[12:22] for seen in peer.seen] == [b"\3web\4test\0"]
    counts = guest.server.counts
    assert (counts.asked, counts.refused, counts.stripped) == (3, 2, 0)
    guest.server.close()
    assert [(r.verb, r.target, r.result) for r in guest.records[3:]] == [
        ("count", "questions refused", 2)
    ]


REBOUND = zone(
    "web.test. 60 IN A 192.0.2.1",
    "web.test. 60 IN A 10.0.0.1",
    "bad.test. 60 IN CNAME metadata.test.",
    "metadata.test. 60 IN A 169.254.169.254",
)


def test_a_name_that_leads_inside_is_stripped_counted_and_explained(make, peer) -> None:
    peer.answer = REBOUND
    guest = make(allow=["web.test", "bad.test"])
    assert answers(guest.ask("web.test")) == ["192.0.2.1"]
    assert guest.names.of(ip_address("10.0.0.1")) == ()
    taken, whole = guest.records
    assert (taken.decision, taken.hint) == ("deny", "--allow 10.0.0.1")
    assert taken.rule == "default: web.test has 10.0.0.1, which is private"
    assert (whole.decision, whole.rule, whole.result) == ("allow", "web.test", 1)
    response = guest.ask("bad.test")
    assert (response.rcode(), answers(response)) == (dns.rcode.NOERROR, ["metadata.test."])
    record = guest.records[-1]
    assert (record.decision, record.result, record.error) == ("deny", 0, 0)
    assert record.rule == "default: bad.test has 169.254.169.254, which is a metadata service"
    counts = guest.server.counts
    assert (counts.asked, counts.refused, counts.stripped) == (2, 1, 2)
    guest.server.close()
    assert [(r.target, r.result) for r in guest.records if r.verb == "count"] == [
        ("questions refused", 1),
        ("addresses taken out of answers", 2),
    ]


def test_without_rules_by_name_private_hosts_are_as_ever(make, peer) -> None:
    peer.answer = REBOUND
    guest = make(deny=["10.9.0.0/16"])
    assert answers(guest.ask("web.test")) == ["10.0.0.1", "192.0.2.1"]
    assert guest.names.of(ip_address("10.0.0.1")) == ("web.test",)


def test_an_answer_that_lives_for_no_second_binds_its_addresses_all_the_same(make, peer) -> None:
    """Else nobody could connect by it: the connection comes after the answer."""
    peer.answer = zone("web.test. 0 IN A 192.0.2.1", "www.test. 0 IN CNAME web.test.")
    guest = make(allow=["*.test"])
    for name in ("web.test", "www.test"):
        assert guest.ask(name).answer[0].ttl == 0
        assert name in guest.names.of(ip_address("192.0.2.1"))


def test_no_answer_teaches_nothing_and_takes_nothing_away(make, peer) -> None:
    """NXDOMAIN, no data (RFC 2308), a failure: they are passed on, and what was said before holds for its lifetime."""
    guest = make(allow=["web.test", "no.test"])
    guest.ask("web.test")
    known = ip_address("192.0.2.1")
    for answer, rcode in (
        (zone("other.test. 300 IN A 192.0.2.77"), dns.rcode.NXDOMAIN),
        (zone("web.test. 300 IN TXT x", "no.test. 300 IN TXT x"), dns.rcode.NOERROR),
        (zone("other.test. 300 IN A 192.0.2.77", rcode=dns.rcode.SERVFAIL), dns.rcode.SERVFAIL),
    ):
        peer.answer = answer
        for name in ("web.test", "no.test"):
            response = guest.ask(name)
            assert (response.rcode(), answers(response)) == (rcode, [])
    assert guest.names.of(known) == ("web.test",)
    assert len(guest.names) == 2  # both addresses of web.test


def test_the_hosts_file_is_this_hosts_own_word(make) -> None:
    guest = make(allow=["inside.test"])
    guest.hosts.write_text("10.0.0.7 inside.test\n")
    assert answers(guest.ask("inside.test")) == ["10.0.0.7"]
    assert guest.records[0].decision == "allow"


def test_a_rule_is_about_the_name_that_was_asked_and_not_about_aliases(make) -> None:
    guest = make(allow=["www.test"])
    assert "192.0.2.3" in answers(guest.ask("www.test"))
    assert guest.names.of(ip_address("192.0.2.3")) == ("www.test",)
    assert guest.ask("edge.test").rcode() == dns.rcode.NXDOMAIN
    other = make(allow=["edge.test"])
    assert other.ask("www.test").rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("server", ["127.0.0.1", "127.0.0.53", "127.99.3.4", "::1"])
def test_the_reply_comes_from_the_address_that_was_asked(guest, server) -> None:
    try:
        with guest.client(server):
            pass
    except OSError:
        pytest.skip("this host has no IPv6")
    assert answers(guest.ask("web.test", server=server)) == ["192.0.2.1", "192.0.2.2"]


def test_the_hosts_server_of_the_same_address_is_asked_first(guest, peer) -> None:
    """A guest that tries its servers one after the other behaves as natively."""
    guest.resolv_conf.write_text("nameserver 127.0.0.1\nnameserver 127.0.0.2\n")
    other = zone("web.test. 300 IN A 192.0.2.200")
    with DnsPeer(other, "127.0.0.2", peer.port):
        assert answers(guest.ask("web.test", server="127.0.0.2")) == ["192.0.2.200"]
        assert answers(guest.ask("web.test", server="127.0.0.1")) == ["192.0.2.1", "192.0.2.2"]


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
from dnsguest import WEB, Guest
from dnskit import DnsPeer
with DnsPeer(WEB, "127.0.0.1") as peer, tempfile.TemporaryDirectory() as path:
    guest = Guest(Path(path), peer, port=53)
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
    run = subprocess.run(
        [*command, sys.executable, "-c", PROGRAMS],
        capture_output=True,
        text=True,
        timeout=100,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    if "unshare:" in run.stderr:
        pytest.skip(f"no user namespaces here: {run.stderr}")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert lines[0] == "getent -> 192.0.2.3"
    assert lines[1].endswith(" -> 192.0.2.3")
    assert lines[2:] in ([], ['dig -> "hello"'])
