from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from dnskit import DnsPeer, refused, silent, truncating, zone
from xensock.stack.resolver import Resolver

WEB = zone(
    "web.test. 300 IN A 192.0.2.1",
    "web.test. 300 IN AAAA 2001:db8::1",
    "web.test. 300 IN TXT hello",
    "www.test. 60 IN CNAME web.test.",
)
OTHER = zone("web.test. 300 IN A 192.0.2.2")


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


@pytest.fixture
def peer():
    with DnsPeer(WEB) as peer:
        yield peer


@pytest.fixture
def host(tmp_path, peer) -> Host:
    return Host(tmp_path, peer.port).servers("127.0.0.1")


def ask(resolver: Resolver, name: str, kind: str = "A", server: str | None = None, **options):
    """Ask one question and check that the reply belongs to it."""
    query = dns.message.make_query(name, kind, **options)
    asked = ip_address(server) if server else None
    response = dns.message.from_wire(asyncio.run(resolver.query(query.to_wire(), asked)))
    assert query.is_response(response)
    return response


def answers(response: dns.message.Message) -> list[str]:
    return sorted(rd.to_text() for rrset in response.answer for rd in rrset)


def test_dns_answers_come_back_as_they_came(host, peer) -> None:
    resolver = host.resolver()
    assert answers(ask(resolver, "web.test")) == ["192.0.2.1"]
    assert answers(ask(resolver, "web.test", "AAAA")) == ["2001:db8::1"]
    assert answers(ask(resolver, "web.test", "TXT")) == ['"hello"']
    assert answers(ask(resolver, "www.test")) == ["192.0.2.1", "web.test."]
    assert ask(resolver, "no.test").rcode() == dns.rcode.NXDOMAIN
    query = dns.message.make_query("web.test", "MX", use_edns=0, payload=1400, want_dnssec=True)
    asyncio.run(resolver.query(query.to_wire()))
    assert peer.seen[-1].wire[2:] == query.to_wire()[2:]  # forwarded verbatim, but for the id


def test_the_hosts_file_comes_first(host, peer) -> None:
    host.hosts.write_text("192.0.2.9 web.test web\n192.0.2.10 web.test\n")
    resolver = host.resolver()
    assert answers(ask(resolver, "WEB.test")) == ["192.0.2.10", "192.0.2.9"]
    assert answers(ask(resolver, "web")) == ["192.0.2.9"]
    # The name exists, without IPv6: DNS is not asked for another machine's.
    response = ask(resolver, "web.test", "AAAA")
    assert (response.rcode(), response.answer) == (dns.rcode.NOERROR, [])
    assert answers(ask(resolver, "9.2.0.192.in-addr.arpa", "PTR")) == ["web.test."]
    assert not peer.seen
    assert answers(ask(resolver, "web.test", "TXT")) == ['"hello"']
    assert resolver.hosts_names(ip_address("192.0.2.9")) == ("web.test", "web")
    assert resolver.hosts_names(ip_address("192.0.2.1")) == ()


def test_changes_of_the_files_are_followed(host, tmp_path) -> None:
    resolver = host.resolver()
    with DnsPeer(OTHER, "127.0.0.2", host.port):
        assert answers(ask(resolver, "web.test")) == ["192.0.2.1"]
        host.servers("127.0.0.2")
        assert answers(ask(resolver, "web.test")) == ["192.0.2.2"]
        (tmp_path / "vpn").write_text("nameserver 127.0.0.1\n")
        (tmp_path / "link").symlink_to("vpn")
        (tmp_path / "link").rename(host.resolv_conf)
        assert answers(ask(resolver, "web.test")) == ["192.0.2.1"]
    host.hosts.write_text("192.0.2.9 web.test\n")
    assert answers(ask(resolver, "web.test")) == ["192.0.2.9"]
    host.hosts.write_text("")
    assert answers(ask(resolver, "web.test")) == ["192.0.2.1"]


def test_nss_answers_what_dns_does_not_know(host, peer) -> None:
    host.nss = {
        "printer": (ip_address("192.0.2.7"), ip_address("2001:db8::7")),
        "box.machines": (ip_address("192.0.2.8"),),
    }
    resolver = host.resolver()
    assert answers(ask(resolver, "printer")) == ["192.0.2.7"]
    assert answers(ask(resolver, "Printer", "AAAA")) == ["2001:db8::7"]
    assert ask(resolver, "box.machines").rcode() == dns.rcode.NXDOMAIN
    assert host.nss_asked == ["printer", "printer"]
    host.nsswitch.write_text("hosts: files mymachines dns\n")
    assert answers(ask(resolver, "box.machines")) == ["192.0.2.8"]
    assert ask(resolver, "box.machines", "AAAA").rcode() == dns.rcode.NOERROR
    assert answers(ask(resolver, "web.test")) == ["192.0.2.1"]  # unknown to NSS, so DNS
    assert host.nss_asked[-1] == "web.test"


def test_the_real_name_service_switch(host) -> None:
    """getaddrinfo(3) itself, for a name that it finds without network."""
    name = next(
        (
            word
            for line in Path("/etc/hosts").read_text().splitlines()
            for word in line.partition("#")[0].split()[1:]
            if "." not in word and word.isalnum()
        ),
        None,
    )
    if name is None:
        pytest.skip("/etc/hosts has no single-label name")
    files = (str(host.resolv_conf), str(host.hosts), str(host.nsswitch))
    resolver = Resolver(*files, port=host.port)
    expected = {address[0] for *_, address in socket.getaddrinfo(name, None, socket.AF_INET)}
    assert set(answers(ask(resolver, name))) == expected


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


def test_without_resolv_conf_this_machine_is_asked(host) -> None:
    host.resolv_conf.unlink()
    assert answers(ask(host.resolver(), "web.test")) == ["192.0.2.1"]


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


def test_the_same_question_at_the_same_time_is_asked_once(host, peer) -> None:
    resolver = host.resolver()

    async def main() -> list[bytes]:
        wires = [dns.message.make_query("web.test", "A", id=n).to_wire() for n in (1, 2, 3)]
        return await asyncio.gather(*map(resolver.query, wires))

    replies = [dns.message.from_wire(reply) for reply in asyncio.run(main())]
    assert [reply.id for reply in replies] == [1, 2, 3]
    assert all(answers(reply) == ["192.0.2.1"] for reply in replies)
    assert len(peer.seen) == 1


def test_one_slow_server_delays_no_other_question(host, peer) -> None:
    """Half of the questions are never answered; the other half is answered at once."""

    def moody(query, seen):
        return None if "slow" in query.question[0].name.to_text() else WEB(query, seen)

    peer.answer = moody
    host.servers("127.0.0.1", options="timeout:2 attempts:1")
    resolver = host.resolver()

    async def main() -> None:
        slow = asyncio.gather(
            *(
                resolver.query(dns.message.make_query(f"slow{n}.test", "A").to_wire())
                for n in range(100)
            )
        )
        await asyncio.sleep(0)
        started = time.monotonic()
        await resolver.query(dns.message.make_query("web.test", "A").to_wire())
        assert time.monotonic() - started < 1.5
        replies = [dns.message.from_wire(reply) for reply in await slow]
        assert {reply.rcode() for reply in replies} == {dns.rcode.SERVFAIL}

    asyncio.run(main())


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
    if "Operation not permitted" in run.stderr or "No such file" in run.stderr:
        pytest.skip(f"no user namespaces here: {run.stderr}")
    assert (run.stdout, run.stderr) == ("192.0.2.1\n", "")


def test_importing_the_resolver_loads_neither_asyncio_nor_dnspython() -> None:
    code = (
        "import sys, xensock.stack.resolver, xensock.supervisor.dns;"
        "print([m for m in ('asyncio', 'dns', 'logging') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == "[]\n", run.stderr
