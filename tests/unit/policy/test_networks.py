"""The networks of policy files: what is wrong with them, and what rules say by them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from xensock.calls.call import Protocol
from xensock.policy.load import PolicyError, parse
from xensock.policy.networks import Network

if TYPE_CHECKING:
    from xensock.policy.policy import Policy

FILE = """
[networks]
vpn = { netns = "/run/netns/vpn", resolv_conf = "/etc/vpn.conf" }
lab.backend = "local:/run/lab"

[[rule]]
allow = "*.corp.test:443"
via = "vpn"

[[rule]]
allow = "*.lab.test:443"
via = ["lab", "host"]

[[rule]]
allow = "plain.test:443"
via = "host"

[[rule]]
allow = "own.test:443"
via = "guest"

[[rule]]
allow = "both.test:443"
via = "vpn"

[[rule]]
allow = "both.test:80"
"""


def read(text: str) -> Policy:
    return parse(text.encode(), "p.toml").policy()


def test_what_a_file_means() -> None:
    policy = read(FILE)
    assert policy.networks == (
        Network("vpn", netns="/run/netns/vpn", resolv_conf="/etc/vpn.conf"),
        Network("lab", backend="local:/run/lab"),
    )
    assert [each.where for each in policy.networks] == ["/run/netns/vpn", "local:/run/lab"]
    assert policy.networks_needed
    found = {
        name: policy.connect(Protocol.TCP, ip_address("203.0.113.1"), 443, (name,))
        for name in ("a.corp.test", "a.lab.test", "own.test", "plain.test")
    }
    assert [(each.via, each.needs_relay) for each in found.values()] == [
        (("vpn",), True),
        (("lab", "host"), True),
        (("guest",), True),
        (("host",), False),
    ]
    assert not any(each.cacheable for each in found.values())
    assert policy.resolve("a.corp.test").via == ("vpn",)
    assert not read('[[rule]]\nallow = "any"\n').networks_needed


def test_private_addresses_belong_to_the_network_of_a_name_and_to_no_name_of_this_one() -> None:
    policy = read(FILE)
    for name, address, allowed in (
        ("a.corp.test", "10.1.1.1", True),
        ("a.corp.test", "203.0.113.1", True),
        ("a.corp.test", "fd12::1", True),
        ("a.corp.test", "127.0.0.1", False),
        ("a.corp.test", "169.254.169.254", False),
        ("a.corp.test", "::1", False),
        ("a.lab.test", "10.1.1.1", False),
        ("own.test", "10.1.1.1", False),
        ("plain.test", "10.1.1.1", False),
        ("both.test", "10.1.1.1", False),  # port 80 of it would be looked for here
    ):
        assert policy.answer(name, ip_address(address)).allowed is allowed, (name, address)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('[networks]\nvpn = "netns:vpn"\n', "networks.vpn must be a table", ""),
        ("[networks]\nvpn = {}\n", "network vpn has neither netns nor backend", "/run/netns/"),
        ('[networks]\nvpn = { netns = "/a", backend = "local:/b" }\n', "both netns", "write"),
        ('[networks]\nvpn = { netns = "vpn" }\n', "no absolute path", '"/run/netns/vpn"'),
        ('[networks]\nvpn = { backend = "/run/x" }\n', "no URL of a backend", "local:PATH"),
        ('[networks]\nvpn = { bakend = "local:x" }\n', "unknown key 'bakend'", "backend?"),
        ('[networks]\nhost = { netns = "/a" }\n', "cannot be called 'host'", "another name"),
        ('[networks]\nguest = { netns = "/a" }\n', "cannot be called 'guest'", "another name"),
        ('[networks]\n"a b" = { netns = "/a" }\n', "'a b' is no name", "letters"),
        (
            '[networks]\nx = { backend = "local:/b", resolv_conf = "/c" }\n',
            "resolv_conf of a backend",
            "leave",
        ),
        ('[[rule]]\nallow = "a.test"\nvia = []\n', "via is an empty list", "leave"),
        ('[[rule]]\nallow = "a.test"\nvia = ["host", "host"]\n', "names host twice", "leave"),
        ('[[rule]]\nallow = "a.test"\nvia = ["host", "vpn"]\n', "no network is called 'vpn'", "["),
        (
            '[[rule]]\nallow = "a.test"\nvia = "host"\nredirect = "unix:/run/s"\n',
            "in no network",
            "leave one",
        ),
        (
            '[[rule]]\nallow = "listen:any:80"\nvia = "host"\n',
            "via in a rule to listen",
            "about connecting",
        ),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str, hint: str) -> None:
    with pytest.raises(PolicyError) as found:
        parse(text.encode(), "p.toml")
    (problem,) = found.value.problems
    assert message in problem.message
    assert hint in problem.hint
