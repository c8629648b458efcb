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
