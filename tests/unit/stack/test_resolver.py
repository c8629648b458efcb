from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from dnskit import OTHER, WEB, DnsPeer, answers, ask
from xensock.stack.resolver import Resolver


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


def test_without_resolv_conf_this_machine_is_asked(host) -> None:
    host.resolv_conf.unlink()
    assert answers(ask(host.resolver(), "web.test")) == ["192.0.2.1"]


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


def test_importing_the_resolver_loads_neither_asyncio_nor_dnspython() -> None:
    code = (
        "import sys, xensock.stack.resolver, xensock.supervisor.dns;"
        "print([m for m in ('asyncio', 'dns', 'logging') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.stdout == "[]\n", run.stderr
