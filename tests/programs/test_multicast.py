"""Multicast: groups of another host, natively and in a guest whose rules name them."""

import errno
import json
import socket
import struct
from pathlib import Path

import pytest
from udpkit import GROUP, KIND, card, free_port, sender

from world.fixtures import only
from world.namespaces import eventually

SOURCE = Path(__file__).parent / "sources" / "multicast.py"
pytestmark = pytest.mark.slow
kernels = pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
guests = pytest.mark.parametrize("guest", only("direct", "relay"), indirect=True)
families = pytest.mark.parametrize("family", [4, 6])
OTHER = {4: "239.9.9.9", 6: "ff05::4712"}
LEVEL = {4: socket.IPPROTO_IP, 6: socket.IPPROTO_IPV6}
ANY = {4: "0.0.0.0", 6: "::"}


def rules(family, *groups):
    every = ("--allow", f"listen:{ANY[family] if family == 4 else '[::]'}:1024-65535/udp")
    named = [f"[{group}]" if family == 6 else group for group in groups]
    both = (("--allow", f"listen:{each}", "--allow", each) for each in named)
    return (*every, *(word for pair in both for word in pair))


def member(world, family, port, group):
    """A socket of the peer's that is in the group."""
    sock = world.peer.socket(KIND[family], socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.bind((ANY[family], port))
    if family == 4:
        value = socket.inet_aton(group) + socket.inet_aton(world.peer.addr4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, value)
    else:
        value = socket.inet_pton(socket.AF_INET6, group) + struct.pack("=I", card(world))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, value)
    return sock


def needs_ipv6(world, family):
    if family == 6 and not world.has_ipv6:
        pytest.skip("this host has no IPv6")


@families
@kernels
def test_a_group_is_heard_until_it_is_left(guest, family):
    world, port = guest.world, free_port(guest.world.host)
    needs_ipv6(world, family)
    argv = [world.python, SOURCE, "hear", family, GROUP[family], port]
    with (
        sender(world, family) as sock,
        guest.popen([str(a) for a in argv], options=rules(family, GROUP[family])) as running,
    ):
        eventually(lambda: "joined" in running.stdout, 20, "the group is joined")
        sock.sendto(b"hello", (GROUP[family], port))
        said, who = sock.recvfrom(100)
        # The answer comes from the address of the member, not of the group.
        assert who[:2] == (world.host.addr4 if family == 4 else world.host.addr6, port)
        assert json.loads(said) == ["hello", sock.getsockname()[0], GROUP[family]]
        eventually(lambda: "left" in running.stdout, 20, "the group is left")
        assert running.wait() == 0


@families
@kernels
def test_own_datagrams_and_the_kernels_words(guest, family):
    """The same natively and in a guest, line by line."""
    world, port = guest.world, free_port(guest.world.host)
    needs_ipv6(world, family)
    argv = [world.python, str(SOURCE), "alone", str(family), GROUP[family], str(port)]
    done = guest.run(argv, options=rules(family, GROUP[family]), check=True)
    assert json.loads(done.stdout) == {
        "twice": "EADDRINUSE",
        "bind": None,
        "heard": ["loop 1", "loop 1", "nothing"],
        "left twice": "EADDRNOTAVAIL",
        "left": "nothing",
        "by index": None,
        "no index": "ENODEV",
        "short": "EINVAL",
        "no group": "EINVAL",
        "default hops": 1,
        "bound to": GROUP[family],
        "MCAST_JOIN_GROUP": None,
        "MCAST_JOIN_SOURCE_GROUP": None,
        "MCAST_LEAVE_SOURCE_GROUP": None,
        "stream": "EPROTO",
        **(
            {}
            if family == 6
            else {
                "no such address": "ENODEV",
                "IP_MULTICAST_IF": "EADDRNOTAVAIL",
                "of a stream": "EINVAL",
            }
        ),
    }


@families
@kernels
def test_sending_to_a_group(guest, family):
    world, port = guest.world, free_port(guest.world.peer)
    needs_ipv6(world, family)
    argv = [world.python, str(SOURCE), "tell", str(family), GROUP[family], str(port)]
    argv.append(world.peer.addr4)
    named = f"[{GROUP[6]}]" if family == 6 else GROUP[4]
    with member(world, family, port, GROUP[family]) as sock:
        sock.setsockopt(LEVEL[family], 51 if family == 6 else 12, 1)
        options = ("--allow", f"{named}:{port}", "--allow", world.peer.addr4)
        guest.run(argv, options=options, check=True)
        found = {}
        for _ in range(5):
            data, control, _, who = sock.recvmsg(100, 100)
            (hops,) = struct.unpack("=i", control[0][2])
            assert who[0] == (world.host.addr4 if family == 4 else world.host.addr6)
            found[data.decode()] = hops
    one = {"plain": 1, "by an address": 1, "connected": 1}
    assert found == {**one, "3 hops": 3, "64 hops": 64}


@families
@guests
def test_no_group_without_a_rule_that_names_it(guest, family):
    world, port = guest.world, free_port(guest.world.host)
    allowed, named = OTHER[family], f"[{OTHER[6]}]" if family == 6 else OTHER[4]
    argv = [world.python, str(SOURCE), "refused", str(family), GROUP[family], str(port), allowed]
    options = ("--allow", "any", "--allow", "listen:any", "--allow", f"listen:{named}:9/udp")
    done = guest.run(argv, options=options, check=True)
    found = json.loads(done.stdout)
    # Whoever may listen anywhere may not be in every group: what is sent to those is others'.
    assert found.pop("loopback") is None
    assert found.pop("allowed") is None
    assert set(found.values()) == {"EACCES"}
    assert len(found) == (4 if family == 6 else 5)
    literal = f"[{GROUP[6]}]" if family == 6 else GROUP[4]
    calls = [call for call in guest.calls if call["decision"] == "deny"]
    joins = [call for call in calls if call["verb"] == "setsockopt"]
    assert len(joins) == len(found) - 1
    for call in joins:
        assert call["target"] == f"{literal}:0/udp"
        assert call["error"] == errno.EACCES
        assert call["rule"] == "default: multicast groups need a rule of their own"
        assert call["hint"] == f"--allow listen:{literal}/udp"
    assert [call["hint"] for call in calls if call["verb"] == "bind"] == [
        f"--allow listen:{named}:{port}/udp"
    ]
