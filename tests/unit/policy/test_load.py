"""Policy files: every error with its place, and what a good one means."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from xensock.calls import Endpoint, Limit, Protocol, Subject
from xensock.policy.load import Document, PolicyError, load, parse, parse_redirect
from xensock.policy.rules import RuleError

if TYPE_CHECKING:
    from pathlib import Path

TCP = Protocol.TCP


def read(text: str) -> Document:
    return parse(text.encode(), "p.toml")


def problems(text: str) -> list[tuple[int, int, str, str]]:
    with pytest.raises(PolicyError) as caught:
        read(text)
    return [(p.line, p.column, p.message, p.hint) for p in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "line", "column", "message", "hint"),
    [
        ("a = web\n", 1, 5, "nvalid value", 'text stands in quotes: a = "web"'),
        ("version: 1\n", 1, 8, "xpected '='", "by =, not by a colon"),
        ('[[rule]]\nallow = "x', 2, 11, "nterminated string", "close the quotes"),
        ('[[rule]]\nallow = ["x:1"\n', 2, 15, "nclosed array", "close the quotes or brackets"),
        ("[rule]\n[rule]\n", 2, 6, "annot declare", "[[rule]] with two brackets"),
        ('[[rule]]\nallow = "pubilc"\n', 2, 9, "no group is called", "did you mean public?"),
        ('[[rule]]\n allow = ["a.test",\n  "web.test:x"]\n', 3, 3, "is not a port", "a number"),
        ('[[rule]]\nalow = "x"\n', 2, 1, "unknown key 'alow'", "did you mean allow?"),
        ("[[rule]]\nprogram = '/bin/x'\n", 1, 1, "rule 1 has neither allow nor deny", "HOST"),
        ('[[rule]]\nallow = "a.test"\ndeny = "b.test"\n', 1, 1, "both allow and deny", "two"),
        ("[[rule]]\nallow = []\n", 2, 9, "allow is an empty list", "leave"),
        ('[[rule]]\nallow = "x.test"\nprogram = "sh"\n', 3, 11, "no absolute path", "write /"),
        (
            '[[rule]]\nallow = "x.test"\nprogram = ["/a", "no-such-program-here"]\n',
            3,
            18,
            "not an absolute path",
            "write */no-such-program-here",
        ),
        (
            '[networks]\ncorp-vpn = { netns = "/run/netns/vpn" }\n[[rule]]\nallow = "x.test"\nvia = "corp-vnp"\n',
            5,
            7,
            "no network is called 'corp-vnp'",
            "did you mean corp-vpn?",
        ),
        ('[[rule]]\ndeny = "x.test"\nvia = "host"\n', 3, 1, "via in a rule that denies", "leave"),
        (
            '[[rule]]\nallow = "listen:any:80"\nredirect = "127.0.0.1:1"\n',
            2,
            9,
            "redirect in a rule to listen",
            "two rules",
        ),
        (
            '[[rule]]\nallow = "any/udp"\nlimit = {rate = 1}\n',
            2,
            9,
            "limit in a rule about udp",
            "",
        ),
        (
            '[[rule]]\nallow = "10.0.0.1"\nverify = "sni"\n',
            2,
            9,
            "verify in a rule that names no host",
            "write a name",
        ),
        ('[[rule]]\nallow = "a.test"\nredirect = "b.test:80"\n', 3, 12, "neither an address", "wr"),
        ('[[rule]]\nallow = "unix:/a"\nprogram = "/b"\n', 2, 9, "more than its path", "leave"),
        ('[[rule]]\nallow = "unix:a"\n', 2, 9, "not absolute", "unix:/run"),
        ('[groups]\nany = ["a.test"]\n', 2, 1, "has a meaning already", "my-any"),
        ('[groups]\n"A b" = ["a.test"]\n', 2, 1, "not a name for a group", "lower-case"),
        ('[groups]\no = ["a.test", "b.test:1"]\n', 2, 16, "not a host, a network or a", "ports"),
        ('[groups]\na = ["b"]\nb = ["a"]\n', 2, 6, "is a member of itself", "leave one"),
        ('[[expect]]\nallow = "any:1"\n', 2, 9, "more than one host", "name one"),
        ('[[expect]]\nallow = "a.test"\n', 2, 9, "a port is missing", "a.test:443"),
        ('[[expect]]\nallow = "a.test:1"\naddress = "x"\n', 3, 11, "not an address", "192.0.2.1"),
    ],
)
def test_errors(text: str, line: int, column: int, message: str, hint: str) -> None:
    found = problems(text)
    wanted = [p for p in found if p[:2] == (line, column)]
    assert wanted, found
    said = " ".join(p[2] for p in wanted)
    assert message.replace("no absolute", "not an absolute") in said
    assert any(hint in p[3] for p in wanted), wanted


def test_every_error_is_told_whatever_its_kind() -> None:
    found = problems(
        """version = 2
[groups]
office = ["10.1.0.0/33"]
[[rule]]
allow = "pubilc:80"
limit = { rate = "1T", conects = 3 }
[[rule]]
allow = ["web.test:443", "ofice:70000"]
deny = "web.test:port"
[[expect]]
allow = "any:3"
"""
    )
    assert [(line, column) for line, column, *_ in found] == [
        (1, 11),
        (3, 11),
        (5, 9),
        (6, 18),
        (6, 24),
        (7, 1),
        (8, 26),
        (11, 9),
    ]


def test_the_first_error_of_each_table_that_is_no_toml() -> None:
    found = problems('a = x\n[[rule]]\nallow = "a.test"\n[[rule]]\ndeny = y\n')
    assert [(line, column) for line, column, *_ in found] == [(1, 5), (5, 8)]


def test_what_is_no_text(tmp_path: Path) -> None:
    assert [p[:3] for p in [(1, 1, "the file is not UTF-8", "")]] == [
        (1, 1, "the file is not UTF-8")
    ]
    with pytest.raises(PolicyError, match=r"p.toml:2:1: the file is not UTF-8"):
        parse(b"a = 1\n\xff", "p.toml")
    with pytest.raises(OSError, match="No such file"):
        load(str(tmp_path / "absent.toml"))
    with pytest.raises(PolicyError):
        read("a = " + "[" * 10000)


def test_whether_guests_have_unix_datagrams() -> None:
    assert read("").policy().unix_datagrams
    assert read('unix_datagrams = "allow"').policy().unix_datagrams
    text = 'unix_datagrams = "refuse"\n[[rule]]\nallow = "any"\nlabels = {a = "b"}\n'
    policy = read(text).policy()
    assert not policy.unix_datagrams
    assert not policy.for_labels({"a": "c"}).unix_datagrams
    with pytest.raises(PolicyError, match="'no' is not 'allow' or 'refuse'"):
        read('unix_datagrams = "no"')
    with pytest.raises(PolicyError, match="unknown key") as e:
        read('unix-datagrams = "refuse"')
    assert "did you mean unix_datagrams?" in e.value.hint


def test_the_error_shown_to_others_names_the_first_and_how_many() -> None:
    with pytest.raises(
        PolicyError, match=r"^p.toml:1:11: version: 2 is not 1 \(and 1 more\)$"
    ) as e:
        read("version = 2\nx = 1\n")
    assert "xensock policy check p.toml" in e.value.hint


GOOD = """
close_on_reload = true

[groups]
apis = ["api.test", "*.cdn.test", "198.51.100.0/24", "[2001:db8::/32]", "inner"]
inner = ["10.9.0.0/16", "loopback"]

[[rule]]
allow = ["apis:443", "listen:any:8080", "accept:10.0.0.0/8:8080"]

[[rule]]
deny = ["bad.cdn.test", "198.51.100.66", "unix:/run/no.sock"]

[[rule]]
allow = "any:9418"
program = ["/usr/bin/git", "/usr/lib/git-core/*"]
labels = { team = "web" }

[[rule]]
allow = "slow.test:443"
limit = { rate = "1.5M", connects = 2, concurrent = 3 }
verify = "sni"
redirect = "127.0.0.1:8443"
via = "host"

[[rule]]
allow = "sock.test:80"
redirect = "unix:/run/app.sock"
"""


def test_what_a_file_means() -> None:
    policy = read(GOOD).policy()

    def asked(host: str, port: int, *names: str, program: str = "", team: str = "") -> object:
        who = Subject(program, {"team": team} if team else {})
        return policy.connect(TCP, ip_address(host), port, names, who)

    web = ip_address("203.0.113.1")
    named = policy.connect(TCP, web, 443, ("api.test",))
    assert (named.allowed, named.rule, named.source) == (True, "apis:443", "p.toml:9")
    assert policy.connect(TCP, web, 443, ("a.cdn.test",)).allowed
    bad = policy.connect(TCP, web, 443, ("bad.cdn.test",))
    assert (bad.allowed, bad.source, bad.close_on_reload) == (False, "p.toml:12", True)
    assert bad.hint == "change the rule at p.toml:12"
    for host, allowed in (
        ("198.51.100.1", True),
        ("198.51.100.66", False),
        ("2001:db8::5", True),
        ("10.9.1.1", True),
        ("127.0.0.1", True),
        ("10.8.0.1", False),
    ):
        assert policy.connect(TCP, ip_address(host), 443).allowed is allowed, host
    default = policy.connect(TCP, web, 80)
    assert (default.rule, default.hint) == ("default: not in p.toml", "--allow 203.0.113.1:80")
    assert default.close_on_reload
    for program, team, allowed in (
        ("/usr/bin/git", "web", True),
        ("/usr/lib/git-core/git-remote-http", "web", True),
        ("/usr/bin/git", "db", False),
        ("/usr/bin/git", "", False),
        ("/usr/bin/gitt", "web", False),
        ("", "web", False),
    ):
        who = Subject(program, {"team": team} if team else {})
        found = policy.connect(TCP, web, 9418, (), who)
        assert found.allowed is allowed, (program, team)
        assert found.cacheable is (team != "web")
    slow = policy.connect(TCP, web, 443, ("slow.test",))
    assert slow.limit == Limit(1_500_000, 2, 3)
    assert (slow.verify, slow.via, slow.needs_relay) == ("sni", ("host",), True)
    assert slow.redirect == Endpoint(ip_address("127.0.0.1"), 8443)
    assert policy.connect(TCP, web, 80, ("sock.test",)).redirect == "/run/app.sock"
    assert policy.listen(TCP, ip_address("0.0.0.0"), 8080).needs_relay
    assert not policy.listen(TCP, ip_address("0.0.0.0"), 8081).allowed
    assert policy.accept(ip_address("10.1.1.1"), 8080).allowed
    assert not policy.accept(ip_address("192.0.2.1"), 8080).allowed
    assert not policy.unix("/run/no.sock").allowed


def test_options_join_a_file() -> None:
    document = read('[groups]\nmine = ["10.0.0.0/8"]\n[[rule]]\ndeny = "10.1.0.0/16"\n')
    policy = document.policy(["mine:22", "10.1.0.5:22", "unix:/a"], ["10.0.0.9"])
    for host, allowed in (
        ("10.0.0.1", True),
        ("10.1.0.1", False),
        ("10.1.0.5", True),
        ("10.0.0.9", False),
    ):
        assert policy.connect(TCP, ip_address(host), 22).allowed is allowed, host
    assert policy.unix("/a").allowed
    with pytest.raises(RuleError, match="no group is called 'minne'"):
        document.policy(["minne:22"])


@pytest.mark.parametrize("first", ["allow", "deny"])
@pytest.mark.parametrize("what", ["10.1.0.0/16:80", "web.test:80", "private:80-90", "10.1.2.3"])
def test_of_rules_as_specific_as_each_other_the_refusal_wins(first: str, what: str) -> None:
    other = "deny" if first == "allow" else "allow"
    policy = read(f'[[rule]]\n{first} = "{what}"\n[[rule]]\n{other} = "{what}"\n').policy()
    decision = policy.connect(TCP, ip_address("10.1.2.3"), 80, ("web.test",))
    assert not decision.allowed
    assert decision.source == f"p.toml:{2 if first == 'deny' else 4}"


def test_a_network_is_for_every_protocol_and_what_is_verified_for_tcp() -> None:
    text = '[[rule]]\nallow = "a.test"\nvia = "host"\n[[rule]]\nallow = "b.test"\nverify = "sni"\nvia = "host"\n'
    policy = read(text).policy()
    for name, protocol, allowed in (
        ("a.test", TCP, True),
        ("a.test", Protocol.UDP, True),
        ("a.test", Protocol.ICMP, True),
        ("b.test", TCP, True),
        ("b.test", Protocol.UDP, False),
    ):
        decision = policy.connect(protocol, ip_address("198.51.100.9"), 0, (name,))
        assert (decision.allowed, decision.via) == (allowed, ("host",) if allowed else ()), name


def test_a_file_alone_refuses_everything() -> None:
    policy = read("").policy()
    assert not policy.connect(TCP, ip_address("203.0.113.1"), 443).allowed
    assert not policy.listen(TCP, ip_address("0.0.0.0"), 8080).allowed
    assert not policy.listen(TCP, ip_address("0.0.0.0"), 0).allowed
    assert not policy.resolve("web.test").allowed
    assert policy.resolve("localhost").allowed


def test_where_a_redirect_leads() -> None:
    assert parse_redirect("[::1]:80") == Endpoint(ip_address("::1"), 80)
    assert parse_redirect("unix:/run/x") == "/run/x"
    for text in ("::1:80", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:²", "x:1"):
        with pytest.raises(RuleError):
            parse_redirect(text)
