"""The grammar of rules, and that every mistake has a hint that helps."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.calls import Protocol
from xensock.policy import RuleError, groups, parse_rule
from xensock.policy.groups import GROUPS


@pytest.mark.parametrize(
    ("text", "direction", "name", "low", "high", "protocol"),
    [
        ("web.test", "connect", "web.test", 0, 65535, None),
        ("connect:web.test:443", "connect", "web.test", 443, 443, None),
        ("Web.Test.:80-90/UDP", "connect", "web.test", 80, 90, Protocol.UDP),
        ("*.web.test/tcp", "connect", "*.web.test", 0, 65535, Protocol.TCP),
        ("db:5432", "connect", "db", 5432, 5432, None),
        ("public.:1", "connect", "public", 1, 1, None),
        ("_x._tcp.web_1.test", "connect", "_x._tcp.web_1.test", 0, 65535, None),
        ("xn--mnchen-3ya.test", "connect", "xn--mnchen-3ya.test", 0, 65535, None),
        ("any:0-65535", "connect", "", 0, 65535, None),
        ("listen:any:8080", "listen", "", 8080, 8080, None),
        ("LISTEN:private:1-2/udp", "listen", "", 1, 2, Protocol.UDP),
        ("10.0.0.0/8:443/tcp", "connect", "", 443, 443, Protocol.TCP),
        ("[2001:db8::/32]:443", "connect", "", 443, 443, None),
        ("[2001:db8::]/32:443", "connect", "", 443, 443, None),
        ("2001:db8::1", "connect", "", 0, 65535, None),
        ("listen:[2001:db8::1]:1/udp", "listen", "", 1, 1, Protocol.UDP),
    ],
)
def test_understood(
    text: str, direction: str, name: str, low: int, high: int, protocol: Protocol | None
) -> None:
    rule = parse_rule(f" {text} ")
    assert (rule.direction, rule.name, rule.low, rule.high) == (direction, name, low, high)
    assert rule.protocol == protocol
    assert (rule.addresses is None) == bool(name)
    assert str(rule) == text


def test_groups_and_localhost() -> None:
    for group, addresses in GROUPS.items():
        assert parse_rule(group.upper()).addresses is addresses
    assert parse_rule("localhost:5432").group == "loopback"


def test_what_a_rule_opens() -> None:
    assert parse_rule("loopback").opens == {"loopback"}
    assert parse_rule("127.0.0.0/24").opens == {"loopback"}
    assert parse_rule("169.254.0.0/16").opens == {"linklocal"}
    assert parse_rule("169.254.169.254").opens == {"metadata", "linklocal"}
    assert parse_rule("any").opens == parse_rule("126.0.0.0/7").opens == frozenset()


def test_listen_on_the_unspecified_address() -> None:
    assert parse_rule("listen:[::]:80").group == "any"
    addresses = parse_rule("listen:0.0.0.0:80").addresses
    assert addresses is not None
    assert addresses.whole(4)
    assert not addresses.touches(6)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "empty", "web.test:443"),
        ("a b", "white space", "one rule per option"),
        ("a\x1b[2Jb", "white space", "one rule"),
        ("pubilc:80", "no group is called 'pubilc'", "did you mean public\\? .* pubilc\\.$"),
        ("localhst", "no group", "did you mean localhost"),
        ("listen:lopback:1", "no group", "did you mean loopback"),
        ("2001:db8::1:443", "is 443 a port", r"\[2001:db8::1\]:443 .*\[2001:db8::1:443\]"),
        ("::1:443", "is 443 a port", r"\[::1\]:443"),
        ("2001:db8:0:0:0:0:0:1:443", "brackets are missing", r"\[2001:db8:0:0:0:0:0:1\]:443"),
        ("listen:2001:db8::/32:443", "brackets are missing", r"listen:\[2001:db8::/32\]:443"),
        ("[2001:db8::1:443", "brackets are wrong", r"\[2001:db8::1\]:443"),
        ("[::1]443", "brackets are wrong", r"\[2001:db8::1\]:443"),
        ("[10.0.0.1]:80", "only IPv6", "write 10.0.0.1:80"),
        ("2001:db8::zz", "not an IPv6 address", "2001:db8::1"),
        ("fe80::1%eth0", "no interface", "leave out %eth0"),
        ("[fe80::1%eth0]:80", "no interface", "leave out %eth0"),
        ("lsten:any:80", "unknown direction", "did you mean listen:any:80"),
        ("lsten:any", "not a port", "did you mean listen:any"),
        ("tcp:web.test:80", "at the end", "write web.test:80/tcp"),
        ("web.test:80/tpc", "unknown protocol 'tpc'", "/tcp, /udp"),
        ("web.test:70000", "no port 70000", "0-65535"),
        ("listen:any:90-80/udp", "ends before it starts", "write listen:any:80-90/udp"),
        ("[2001:db8::1]:90-80", "ends before", r"write \[2001:db8::1\]:80-90"),
        ("web.test:", "not a port", "write web.test$"),
        ("any:*", "not a port", "write any$"),
        ("web.test:80,443", "not a port", "one rule per port"),
        ("web.test:htp", "not a port", "number such as 443"),
        ("web.test:\u0663", "not a port", "number"),
        (":80", "host is missing", "write any:80$"),
        ("listen:*:80", "host is missing", "write listen:any:80$"),
        ("443", "not an IPv4 address", "write any:443"),
        ("listen:80", "not an IPv4 address", "write listen:any:80"),
        ("10.0.0.256", "not an IPv4 address", "four numbers"),
        ("10.0.0.5/8", "inside the network", "10.0.0.0/8, for the address 10.0.0.5"),
        ("10.0.0.0/33", "not the length", "10.0.0.0/8"),
        ("10.0.0.0/255.0.0.0", "not the length", "10.0.0.0/8"),
        ("web.test/443", "not an address", "write web.test:443"),
        ("0.0.0.0:80", "no destination", "loopback"),
        ("[::]:80", "no destination", "loopback"),
        ("http://web.test/x", "not a URL", "write web.test:80$"),
        ("https://[::1]:99/", "not a URL", r"write \[::1\]:99$"),
        ("https://web.test:http/", "not a URL", "HOST:PORT"),
        ("://", "not a URL", "HOST:PORT"),
        ("a.*.test", "only for the first", r"\*\.web\.test"),
        ("m\u00fcnchen.test", "ASCII", "xn--mnchen-3ya.test"),
        ("\u00fc" * 64 + ".test", "ASCII", "xn--"),
        ("-x.test", "not a host name", "letters"),
        ("a..b", "not a host name", "letters"),
        ("a" * 64, "not a host name", "letters"),
        ("listen:web.test", "not by name", "listen:any:8080"),
    ],
)
def test_mistakes_are_explained(text: str, message: str, hint: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_rule(text)
    assert message in caught.value.message
    assert str(caught.value) == caught.value.message
    assert re.search(hint, caught.value.hint), caught.value.hint
    assert caught.value.message.isprintable()


def test_a_service_name_is_translated() -> None:
    with pytest.raises(RuleError) as caught:
        parse_rule("web.test:https")
    assert caught.value.hint in (
        "write web.test:443",
        "write a number such as 443, or a range such as 80-90",
    )


fragments = [*"abx019.:-/[]*%\u00fc", "listen:", "any", "loopback", "::", "10.0.0.0/8"]


@given(st.lists(st.sampled_from(fragments), max_size=9).map("".join) | st.text(max_size=30))
def test_any_text_is_a_rule_or_a_hinted_error(text: str) -> None:
    try:
        rule = parse_rule(text)
    except RuleError as error:
        hint = error.hint
        assert error.message  # noqa: PT017
        assert hint
    else:
        assert (rule.addresses is None) != (rule.name == "")
        assert 0 <= rule.low <= rule.high <= 65535
        assert parse_rule(str(rule)) == rule or rule.addresses is not None


@given(st.ip_addresses(), st.integers(0, 65535), st.sampled_from(["", "/tcp", "/udp"]))
def test_what_we_print_reads_back(host: object, port: int, suffix: str) -> None:
    literal = f"[{host}]" if ":" in str(host) else str(host)
    if str(host) in ("0.0.0.0", "::", "::ffff:0:0", "::ffff:0.0.0.0"):  # no destinations
        return
    rule = parse_rule(f"{literal}:{port}{suffix}")
    assert rule.exact
    assert (rule.low, rule.high) == (port, port)


REFERENCE = (Path(__file__).parents[3] / "docs" / "reference" / "rules.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the table of the reference whose heading row begins like this."""
    rows = REFERENCE.partition(f"| {heading} |")[2].splitlines()[2:]
    found = []
    for row in rows:
        if not row.startswith("|"):
            break
        found.append([cell.strip() for cell in row.strip("|").split(" | ")])
    assert found
    return found


def test_the_examples_of_the_reference() -> None:
    for text, _ in table("example"):
        assert str(parse_rule(text.strip("`"))) == text.strip("`")


def test_the_errors_of_the_reference() -> None:
    for text, message, hint in table("rule"):
        rule = text.strip("`")
        with pytest.raises(RuleError) as caught:
            parse_rule(rule)
        assert caught.value.message == f"rule {rule!r}: {message}"
        assert caught.value.hint == hint


def test_the_groups_of_the_reference() -> None:
    rows = {
        name.strip("`"): re.findall(r"`([0-9a-f.:]+/\d+)`", nets) for name, nets in table("group")
    }
    assert rows.keys() == GROUPS.keys()
    for name in ("any", "loopback", "linklocal", "metadata", "private"):
        assert rows[name] == list(getattr(groups, name.upper()))
