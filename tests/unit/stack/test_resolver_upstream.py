from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest

from dnskit import OTHER, WEB, DnsPeer, answers, ask, refused, silent, truncating, zone


def test_ids_and_ports_are_fresh_for_every_question(host, peer) -> None:
    resolver = host.resolver()
    for number in range(20):
        ask(resolver, f"n{number}.test", id=1)
    assert len({seen.id for seen in peer.seen}) > 15
    assert len({seen.source[1] for seen in peer.seen}) > 15


def test_replies_to_another_question_are_ignored(host, peer) -> None:
    def forging(query, seen):
        true = WEB(query, seen).to_wire()
        wrong_id = bytes([true[0] ^ 1]) + true[1:]
        evil = dns.message.make_query("evil.test", "A", id=query.id)
        wrong_name = zone("evil.test. 9 IN A 192.0.2.66")(evil, seen).to_wire()
        for forged in (b"", b"x", wrong_id, wrong_name, query.to_wire()):
            peer._udp.sendto(forged, seen.source)
        return true

    peer.answer = forging
    assert answers(ask(host.resolver(), "web.test")) == ["192.0.2.1"]


def test_the_next_server_is_asked_when_one_refuses_fails_or_is_not_there(host, peer) -> None:
    host.servers("127.0.0.3", "127.0.0.2", "127.0.0.1")  # nothing listens on 127.0.0.3
    with DnsPeer(refused, "127.0.0.2", host.port) as second:
        started = time.monotonic()
        assert answers(ask(host.resolver(), "web.test")) == ["192.0.2.1"]
        assert time.monotonic() - started < 4  # none of them costs a timeout
        assert len(second.seen) == 1


def test_a_silent_server_costs_its_timeout_once(host, peer) -> None:
    host.servers("127.0.0.2", "127.0.0.1", options="timeout:1 attempts:1")
    with DnsPeer(silent, "127.0.0.2", host.port) as dead:
        resolver = host.resolver()
        started = time.monotonic()
        assert answers(ask(resolver, "web.test")) == ["192.0.2.1"]
        assert 0.9 < time.monotonic() - started < 4
        assert answers(ask(resolver, "www.test")) == ["192.0.2.1", "web.test."]
        assert len(dead.seen) == 1
        # The guest asks it nevertheless: then as natively.
        ask(resolver, "web.test", server="127.0.0.2")
        assert len(dead.seen) == 2


def test_the_server_that_the_guest_asked_is_asked_first(host) -> None:
    host.servers("127.0.0.1", "127.0.0.2")
    with DnsPeer(OTHER, "127.0.0.2", host.port):
        resolver = host.resolver()
        assert answers(ask(resolver, "web.test", server="127.0.0.2")) == ["192.0.2.2"]
        # Not a server of the host: the guest does not choose whom the host talks to.
        assert answers(ask(resolver, "web.test", server="198.51.100.8")) == ["192.0.2.1"]


def test_rotate_shares_the_questions_out(host, peer) -> None:
    host.servers("127.0.0.1", "127.0.0.2", options="rotate")
    with DnsPeer(OTHER, "127.0.0.2", host.port) as second:
        resolver = host.resolver()
        for _ in range(6):
            ask(resolver, "web.test")
        assert (len(peer.seen), len(second.seen)) == (3, 3)


def test_servfail_when_no_server_answers(host, peer) -> None:
    host.servers("127.0.0.2", "127.0.0.3", options="attempts:2")
    assert ask(host.resolver(), "web.test").rcode() == dns.rcode.SERVFAIL
    host.servers("127.0.0.1", options="attempts:2")
    peer.answer = refused
    assert ask(host.resolver(), "web.test").rcode() == dns.rcode.REFUSED
    assert len(peer.seen) == 2


def test_truncated_answers_are_fetched_over_tcp(host, peer) -> None:
    big = zone(*(f"big.test. 60 IN A 192.0.2.{number}" for number in range(200)))
    peer.answer = truncating(big)
    assert len(answers(ask(host.resolver(), "big.test"))) == 200
    assert [seen.tcp for seen in peer.seen] == [False, True]


def test_a_truncated_answer_is_better_than_none(host, peer) -> None:
    def no_tcp(query, seen):
        return None if seen.tcp else truncating(WEB)(query, seen)

    peer.answer = no_tcp
    response = ask(host.resolver(), "web.test")
    assert response.flags & dns.flags.TC
    assert response.rcode() == dns.rcode.NOERROR


def test_use_vc_means_tcp(host, peer) -> None:
    host.servers("127.0.0.1", options="use-vc")
    assert answers(ask(host.resolver(), "web.test")) == ["192.0.2.1"]
    assert [seen.tcp for seen in peer.seen] == [True]


SCOPED = """
import asyncio, sys
import dns.message
from dnskit import DnsPeer, zone
from xensock.stack.resolver import Resolver
path = sys.argv[1]
with DnsPeer(zone("web.test. 9 IN A 192.0.2.1"), "fe80::1%lo") as peer:
    resolver = Resolver(path, "/dev/null", "/dev/null", port=peer.port)
    wire = asyncio.run(resolver.query(dns.message.make_query("web.test", "A").to_wire()))
    print(dns.message.from_wire(wire).answer[0][0].address)
"""


@pytest.mark.skipif(not shutil.which("ip"), reason="needs ip(8)")
def test_an_ipv6_server_with_scope(tmp_path) -> None:
    """A router that announces its link-local address as the name server (RFC 8106)."""
    conf = tmp_path / "resolv.conf"
    conf.write_text("nameserver fe80::1%nowhere\nnameserver fe80::1%lo\n")
    script = 'ip link set lo up && ip addr add fe80::1/64 dev lo nodad && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script, "sh"]
    run = subprocess.run(
        [*command, sys.executable, "-c", SCOPED, str(conf)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    if "unshare:" in run.stderr:
        pytest.skip(f"no user namespaces here: {run.stderr}")
    assert (run.stdout, run.stderr) == ("192.0.2.1\n", "")
