"""The policy point: its defaults and rules one by one, then against a slow evaluator."""

import errno
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xensock.calls import Decision, Protocol
from xensock.policy import Policy, RuleError

TCP, UDP = Protocol.TCP, Protocol.UDP
PROTECTED_DEFAULTS = (
    "default: host loopback",
    "default: metadata service",
    "default: link-local address",
)


def connect(policy: Policy, host: str, port: int = 80, *names: str) -> Decision:
    return policy.connect(TCP, ip_address(host), port, names)


def listen(policy: Policy, host: str, port: int, v6only: bool = False) -> Decision:
    return policy.listen(TCP, ip_address(host), port, v6only)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("203.0.113.9", True),
        ("2001:db8::1", True),
        ("10.0.0.1", True),
        ("::ffff:10.0.0.1", True),
        ("fd00::1", True),
        ("64:ff9b::8.8.8.8", True),
        ("64:ff9b::10.0.0.1", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("::1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:0.0.0.0", False),
        ("64:ff9b::127.0.0.1", False),
        ("169.254.1.1", False),
        ("fe80::1", False),
        ("169.254.169.254", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::169.254.169.254", False),
        ("fd00:ec2::254", False),
        ("100.100.100.200", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::127.0.0.1", False),
    ],
)
def test_connect_without_rules(host: str, allowed: bool) -> None:
    policy = Policy.parse([], [])
    decision = connect(policy, host)
    assert decision.allowed is allowed
    assert decision.error == (0 if allowed else errno.EACCES)
    assert decision.cacheable
    assert decision.rule.startswith("default: ")
    assert decision.hint.startswith("--allow ") is not allowed


def test_connect_by_name() -> None:
    policy = Policy.parse(["web.test:443", "*.api.test"], [])
    assert policy.names_needed
    decision = connect(policy, "203.0.113.9", 443, "Web.Test.")
    assert (decision.allowed, decision.rule, decision.name) == (True, "web.test:443", "web.test")
    assert not decision.cacheable
    refused = connect(policy, "203.0.113.9", 443)
    assert (refused.allowed, refused.error, refused.cacheable) == (False, errno.EACCES, False)
    assert connect(policy, "203.0.113.9", 80, "web.test").hint == "--allow web.test:80"
    assert connect(policy, "203.0.113.9", 80, "a.b.api.test").allowed
    assert not connect(policy, "203.0.113.9", 80, "api.test").allowed
    assert not connect(policy, "203.0.113.9", 80, "evilapi.test").allowed
    assert connect(policy, "203.0.113.9", 443, "x.test", "web.test").allowed


def test_a_name_does_not_open_the_host() -> None:
    """Whoever answers for web.test may not point it at the host's loopback or metadata."""
    policy = Policy.parse(["web.test"], [])
    for host in ("127.0.0.1", "::1", "169.254.169.254", "fe80::1", "64:ff9b::127.0.0.1"):
        decision = connect(policy, host, 80, "web.test")
        assert not decision.allowed
        assert decision.rule in PROTECTED_DEFAULTS
        assert "web.test" not in decision.hint
    assert connect(policy, "10.0.0.1", 80, "web.test").allowed


def test_protected_ranges_open_to_a_rule_that_names_them() -> None:
    for rule in ("any", "0.0.0.0/0", "126.0.0.0/7", "168.0.0.0/6", "public", "private"):
        for host in ("127.0.0.1", "169.254.169.254", "169.254.1.1", "100.100.100.200"):
            assert not connect(Policy.parse([rule], []), host).allowed, (rule, host)
    for rule, host in (
        ("loopback", "127.0.0.1"),
        ("localhost", "::1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.0/8", "127.1.2.3"),
        ("metadata", "169.254.169.254"),
        ("169.254.169.254", "::ffff:169.254.169.254"),
        ("100.100.100.200", "100.100.100.200"),
        ("169.254.0.0/16", "169.254.1.1"),
        ("linklocal", "fe80::1"),
        ("fe80::1", "fe80::1"),
    ):
        assert connect(Policy.parse([rule], []), host).allowed, (rule, host)
    assert not connect(Policy.parse(["linklocal"], []), "169.254.169.254").allowed


def test_loopback_port() -> None:
    policy = Policy.parse(["loopback:5432"], [])
    assert connect(policy, "127.0.0.1", 5432).allowed
    assert connect(policy, "::1", 5432).allowed
    assert not connect(policy, "127.0.0.1", 5433).allowed
    assert not connect(policy, "203.0.113.9", 5432).allowed


def test_protocols() -> None:
    policy = Policy.parse(["any:53/udp"], [])
    host = ip_address("192.0.2.1")
    assert policy.connect(UDP, host, 53, []).allowed
    refused = policy.connect(TCP, host, 53, [])
    assert not refused.allowed
    assert refused.hint == "--allow 192.0.2.1:53"
    assert policy.connect(UDP, host, 54, []).hint == "--allow 192.0.2.1:54/udp"


def test_deny_alone_keeps_the_defaults() -> None:
    policy = Policy.parse([], ["203.0.113.0/24", "private:22"])
    decision = connect(policy, "203.0.113.9")
    assert (decision.allowed, decision.rule) == (False, "203.0.113.0/24")
    assert decision.hint == "remove --deny 203.0.113.0/24"
    assert not connect(policy, "10.0.0.1", 22).allowed
    assert connect(policy, "10.0.0.1", 23).allowed
    assert connect(policy, "198.51.100.7").allowed
    assert not connect(policy, "127.0.0.1").allowed
    assert listen(policy, "0.0.0.0", 8080).allowed


def test_deny_wins_at_any_specificity() -> None:
    policy = Policy.parse(["203.0.113.9:80", "web.test", "loopback:80"], ["any:1-100"])
    assert connect(policy, "203.0.113.9", 80).rule == "any:1-100"
    assert connect(policy, "127.0.0.1", 80).rule == "any:1-100"
    assert not connect(policy, "198.51.100.7", 80, "web.test").allowed
    assert connect(policy, "198.51.100.7", 443, "web.test").allowed


def test_deny_holds_for_every_form_of_an_address() -> None:
    policy = Policy.parse([], ["203.0.113.9"])
    for host in ("203.0.113.9", "::ffff:203.0.113.9", "64:ff9b::203.0.113.9"):
        assert not connect(policy, host).allowed
    assert not connect(Policy.parse(["any"], ["127.0.0.1"]), "0.0.0.0").allowed
    assert not connect(Policy.parse(["public"], []), "64:ff9b::10.0.0.1").allowed


def test_deny_by_name() -> None:
    policy = Policy.parse([], ["evil.test", "web.test:80"])
    assert policy.names_needed
    assert not connect(policy, "203.0.113.9", 443, "evil.test").allowed
    assert not connect(policy, "203.0.113.9", 80, "web.test").allowed
    allowed = connect(policy, "203.0.113.9", 443, "web.test")
    assert allowed.allowed
    assert not allowed.cacheable  # it could still be learned as evil.test
    assert not policy.resolve("evil.test").allowed
    assert policy.resolve("web.test").allowed


def test_cacheable_unless_a_name_could_matter() -> None:
    policy = Policy.parse(["10.0.0.0/8", "web.test:443"], ["10.9.0.0/16", "evil.test:25"])
    assert connect(policy, "10.9.0.1", 443).cacheable
    assert connect(policy, "10.0.0.1", 443).cacheable
    assert not connect(policy, "10.0.0.1", 25).cacheable
    assert not connect(policy, "203.0.113.9", 443).cacheable
    assert connect(policy, "203.0.113.9", 80).cacheable


def test_listen_without_rules() -> None:
    policy = Policy.parse([], [])
    for host in ("0.0.0.0", "::", "10.0.0.5", "127.0.0.1"):
        assert listen(policy, host, 0).allowed
        assert listen(policy, host, 1024).allowed
        refused = listen(policy, host, 1023)
        assert (refused.allowed, refused.error) == (False, errno.EACCES)
    assert listen(policy, "0.0.0.0", 80).hint == "--allow listen:any:80"
    assert listen(policy, "10.0.0.5", 80).hint == "--allow listen:10.0.0.5:80"
    assert policy.listen(UDP, ip_address("fd00::5"), 53).hint == "--allow listen:[fd00::5]:53/udp"


def test_listen_rules_leave_connecting_alone() -> None:
    policy = Policy.parse(["listen:any:8080"], [])
    assert connect(policy, "203.0.113.9").allowed
    assert policy.resolve("web.test").allowed
    assert listen(policy, "0.0.0.0", 8080).allowed
    assert not listen(policy, "0.0.0.0", 8081).allowed
    assert listen(Policy.parse(["web.test"], []), "0.0.0.0", 8081).allowed


def test_a_wildcard_is_every_address() -> None:
    one = Policy.parse(["listen:10.0.0.5:80"], [])
    assert listen(one, "10.0.0.5", 80).allowed
    assert not listen(one, "0.0.0.0", 80).allowed
    assert not listen(one, "::", 80).allowed
    four = Policy.parse(["listen:0.0.0.0/0:80"], [])
    assert listen(four, "0.0.0.0", 80).allowed
    assert listen(four, "::ffff:0.0.0.0", 80).allowed
    assert not listen(four, "::", 80).allowed
    six = Policy.parse(["listen:::/0"], [])
    assert not listen(six, "::", 80).allowed  # it would take IPv4 too
    assert listen(six, "::", 80, v6only=True).allowed
    both = Policy.parse(["listen:0.0.0.0/0:80", "listen:::/0"], [])
    assert listen(both, "::", 80).rule == "listen:::/0, listen:0.0.0.0/0:80"
    assert listen(Policy.parse(["listen:[::]:80"], []), "::", 80).allowed
    assert listen(Policy.parse(["listen:0.0.0.0:80"], []), "10.0.0.5", 80).allowed


def test_a_wildcard_is_refused_if_one_address_is() -> None:
    policy = Policy.parse(["listen:any"], ["listen:10.0.0.5:80"])
    assert listen(policy, "10.0.0.6", 80).allowed
    for host in ("10.0.0.5", "0.0.0.0", "::"):
        assert listen(policy, host, 80).rule == "listen:10.0.0.5:80"
    assert listen(policy, "::", 80, v6only=True).allowed
    assert listen(policy, "::", 81).allowed


def test_listen_on_some_free_port() -> None:
    assert not listen(Policy.parse(["listen:any:8080"], []), "0.0.0.0", 0).allowed
    for rule in ("listen:any", "listen:any:0", "listen:any:1024-65535", "listen:any:1-65535"):
        assert listen(Policy.parse([rule], []), "0.0.0.0", 0).allowed, rule
        assert not listen(Policy.parse([], [rule]), "0.0.0.0", 0).allowed, rule
    assert not listen(Policy.parse(["listen:any:1025-65535"], []), "0.0.0.0", 0).allowed


def test_groups_are_joined_by_rules_that_name_them() -> None:
    group, six = ip_address("239.1.2.3"), ip_address("ff05::5")
    for allow in ([], ["any", "listen:any"], ["listen:0.0.0.0/0", "listen:128.0.0.0/1"]):
        refused = Policy.parse(allow, []).join(group, 0)
        assert (refused.allowed, refused.error) == (False, errno.EACCES)
        assert refused.hint == "--allow listen:239.1.2.3/udp"
    assert Policy.parse([], []).join(six, 9).hint == "--allow listen:[ff05::5]:9/udp"
    for rule in ("listen:239.1.2.3", "listen:239.0.0.0/8", "listen:224.0.0.0/4:5353/udp"):
        policy = Policy.parse([rule], [])
        assert policy.join(group, 5353).rule == rule
        assert not policy.join(six, 5353).allowed
        # Before it is bound, whichever port there is; then that one.
        assert policy.join(group, 0).allowed
        assert policy.join(group, 5354).allowed == (":5353" not in rule)
    assert not Policy.parse(["listen:239.1.2.3/tcp"], []).join(group, 0).allowed
    assert not Policy.parse(["listen:239.1.2.3"], ["listen:239.1.2.0/24"]).join(group, 0).allowed
    some = Policy.parse(["listen:239.1.2.3"], ["listen:any:80"])
    assert some.join(group, 0).allowed
    assert not some.join(group, 80).allowed


def test_names_without_rules_by_name() -> None:
    for allow in ([], ["10.0.0.0/8"], ["203.0.113.9:443", "loopback"], ["listen:any"]):
        policy = Policy.parse(allow, [])
        assert policy.resolve("web.test").allowed
        assert not policy.names_needed


def test_names_with_rules_by_name() -> None:
    policy = Policy.parse(["web.test:443", "*.api.test", "10.0.0.5"], ["bad.api.test"])
    assert policy.resolve("WEB.test.").name == "web.test"
    assert policy.resolve("v1.api.test").allowed
    assert policy.resolve("localhost").allowed
    refused = policy.resolve("other.test")
    assert (refused.allowed, refused.error, refused.cacheable) == (False, 0, True)
    assert refused.hint == "--allow other.test"
    bad = policy.resolve("bad.api.test")
    assert (bad.allowed, bad.rule, bad.name) == (False, "bad.api.test", "bad.api.test")
    for wide in ("any:443", "public", "private", "0.0.0.0/0", "::/0"):
        assert Policy.parse(["web.test", wide], []).resolve("other.test").allowed


def test_hints_for_odd_names_are_still_rules() -> None:
    policy = Policy.parse(["web.test"], [])
    assert connect(policy, "203.0.113.9", 80, "public").hint == "--allow public.:80"
    assert connect(policy, "203.0.113.9", 80, "listen").hint == "--allow listen.:80"
    for odd in ("a b", "*.test", "x\x1b[2J", "", "1.2.3.4"):
        assert connect(policy, "203.0.113.9", 80, odd).hint == "--allow 203.0.113.9:80"
    assert policy.resolve("a b").hint == ""
    assert policy.resolve("").hint == ""


def test_generations_differ() -> None:
    assert Policy.parse([], []).generation != Policy.parse([], []).generation


def test_a_bad_rule_is_an_error() -> None:
    with pytest.raises(RuleError, match="no port"):
        Policy.parse(["web.test:80", "web.test:99999"], [])


# A slow evaluator that is right at a glance. It knows rules as tuples, networks by
# ip_network, and asks every question separately.

NETS = ["10.0.0.0/8", "10.0.0.5", "127.0.0.0/8", "203.0.113.0/24", "0.0.0.0/0", "::/0", "::1"]
HOSTS = ["10.0.0.5", "10.0.0.6", "127.0.0.1", "203.0.113.9", "224.0.0.1", "::1", "2001:db8::1"]
NAMES = ["web.test", "a.web.test", "*.web.test"]
PORTS = [(0, 65535), (80, 80), (80, 90), (1024, 65535)]

SlowRule = tuple[str, tuple[int, int], str]  # host part, ports, protocol


def spell(rule: SlowRule) -> str:
    host, (low, high), protocol = rule
    ports = "" if (low, high) == (0, 65535) else f":{low}-{high}"
    host = f"[{host}]" if ":" in host else host
    return host + ports + (f"/{protocol}" if protocol else "")


def matches(rule: SlowRule, protocol: str, host: str, port: int, names: list[str]) -> bool:
    where, (low, high), only = rule
    if only not in ("", protocol) or not low <= port <= high:
        return False
    if where.startswith("*"):
        return any(name.endswith(where[1:]) for name in names)
    if where in NAMES:
        return where in names
    return ip_address(host) in ip_network(where)


def names_loopback(rule: SlowRule) -> bool:
    return rule[0] in ("127.0.0.0/8", "::1")


def slow_connect(
    allow: list[SlowRule],
    deny: list[SlowRule],
    protocol: str,
    host: str,
    port: int,
    names: list[str],
) -> bool:
    if any(matches(rule, protocol, host, port, names) for rule in deny):
        return False
    if ip_address(host).is_loopback:
        allow = [rule for rule in allow if names_loopback(rule)]
        return any(matches(rule, protocol, host, port, names) for rule in allow)
    if allow:
        return any(matches(rule, protocol, host, port, names) for rule in allow)
    return not ip_address(host).is_multicast


slow_rules = st.lists(
    st.tuples(
        st.sampled_from([*NETS, *NAMES]),
        st.sampled_from(PORTS),
        st.sampled_from(["", "tcp", "udp"]),
    ),
    max_size=4,
)


@given(
    slow_rules,
    slow_rules,
    st.sampled_from([TCP, UDP]),
    st.sampled_from(HOSTS),
    st.sampled_from([0, 79, 80, 85, 90, 91, 1024, 65535]),
    st.lists(st.sampled_from(["web.test", "a.web.test", "x.test"]), max_size=2),
)
def test_connect_agrees_with_the_slow_evaluator(
    allow: list[SlowRule],
    deny: list[SlowRule],
    protocol: Protocol,
    host: str,
    port: int,
    names: list[str],
) -> None:
    policy = Policy.parse(list(map(spell, allow)), list(map(spell, deny)))
    decision = policy.connect(protocol, ip_address(host), port, names)
    assert decision.allowed == slow_connect(allow, deny, protocol, host, port, names)
    if decision.cacheable:  # then no name may change it
        for other in ([], ["web.test"], ["a.web.test"]):
            assert policy.connect(protocol, ip_address(host), port, other).allowed == (
                decision.allowed
            )
    if decision.hint.startswith("--allow "):  # then the hint must work
        more = [*map(spell, allow), decision.hint.removeprefix("--allow ")]
        wider = Policy.parse(more, list(map(spell, deny)))
        assert wider.connect(protocol, ip_address(host), port, names).allowed


LOCALS = ["10.0.0.5", "10.0.0.6", "127.0.0.1", "2001:db8::1", "::1"]  # one per behaviour
listen_rules = st.lists(
    st.tuples(st.sampled_from(NETS), st.sampled_from(PORTS), st.sampled_from(["", "tcp", "udp"])),
    max_size=4,
)


def slow_listen(
    allow: list[SlowRule], deny: list[SlowRule], protocol: str, host: str, port: int
) -> bool:
    """A wildcard is judged by asking for address after address; one that no rule but a whole
    family's takes stands for all those not listed."""
    if host in ("0.0.0.0", "::"):
        every = [*LOCALS, "198.51.100.99", "3fff::99", "203.0.113.9"]
        if host == "0.0.0.0":
            every = [one for one in every if ":" not in one]
        return all(slow_listen(allow, deny, protocol, one, port) for one in every)
    if any(matches(rule, protocol, host, port, []) for rule in deny):
        return False
    if allow:
        return any(matches(rule, protocol, host, port, []) for rule in allow)
    return port >= 1024


@given(
    listen_rules,
    listen_rules,
    st.sampled_from([TCP, UDP]),
    st.sampled_from([*LOCALS, "0.0.0.0", "::"]),
    st.sampled_from([79, 80, 85, 90, 91, 1023, 1024, 65535]),
)
def test_listen_agrees_with_the_slow_evaluator(
    allow: list[SlowRule], deny: list[SlowRule], protocol: Protocol, host: str, port: int
) -> None:
    policy = Policy.parse(
        [f"listen:{spell(rule)}" for rule in allow], [f"listen:{spell(rule)}" for rule in deny]
    )
    decision = policy.listen(protocol, ip_address(host), port)
    assert decision.allowed == slow_listen(allow, deny, protocol, host, port)
    if decision.hint.startswith("--allow "):
        more = [*(f"listen:{spell(rule)}" for rule in allow), decision.hint.split()[1]]
        wider = Policy.parse(more, [f"listen:{spell(rule)}" for rule in deny])
        assert wider.listen(protocol, ip_address(host), port).allowed


hosts = st.ip_addresses() | st.sampled_from(
    [IPv4Address(0), IPv6Address(0), ip_address("64:ff9b::7f00:1"), ip_address("169.254.169.254")]
)


@given(hosts, st.integers(0, 65535), st.sampled_from([TCP, UDP]))
def test_every_refusal_without_rules_can_be_lifted(
    host: IPv4Address | IPv6Address, port: int, protocol: Protocol
) -> None:
    decision = Policy.parse([], []).connect(protocol, host, port, [])
    if not decision.allowed:
        rule = decision.hint.removeprefix("--allow ")
        assert Policy.parse([rule], []).connect(protocol, host, port, []).allowed
    decision = Policy.parse([], []).listen(protocol, host, port)
    if not decision.allowed:
        rule = decision.hint.removeprefix("--allow ")
        assert Policy.parse([rule], []).listen(protocol, host, port).allowed
