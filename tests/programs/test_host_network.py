"""A guest uses the host's network whatever it is, also when it changes while the guest runs."""

import pytest

from world.namespaces import needs

pytestmark = needs("curl")
FETCHER = """
import sys, urllib.request
for url in map(str.strip, sys.stdin):
    try:
        print(urllib.request.urlopen(url, timeout=1).read().decode().strip(), flush=True)
    except OSError as error:
        print(type(getattr(error, "reason", error)).__name__, flush=True)
"""


class Fetcher:
    """A program that stays and fetches what it is told: one guest over all changes."""

    def __init__(self, guest):
        argv = guest.command([guest.world.python, "-c", FETCHER])
        self.process = guest.world.host.popen(
            argv, user="xstest", stdin=-1, stdout=-1, text=True, cwd=guest.directory
        )

    def __call__(self, url):
        self.process.stdin.write(url + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@pytest.fixture
def fetch(guest):
    fetcher = Fetcher(guest)
    yield fetcher
    with fetcher.process:
        fetcher.process.stdin.close()
        assert fetcher.process.wait(20) == 0


def test_a_server_behind_the_vpn_with_no_option(guest, vpn):
    get = ["curl", "-sS", "--max-time", "10", f"http://{vpn.address}/address"]
    assert guest.run(get, check=True).stdout == f"{vpn.client}\n"
    guest.mediated(1, "connect", f"{vpn.address}:80")


def test_a_route_that_appears_is_followed(guest, fetch):
    """The server is swallowed at first; then the host learns another way to it, and forgets it."""
    world, url = guest.world, f"http://{guest.world.silent4}/address"
    assert fetch(url) == "TimeoutError"
    world.peer.ip(f"route del blackhole {world.silent4}/32", f"addr add {world.silent4}/32 dev lo")
    try:
        assert fetch(url) == world.host.addr4
    finally:
        world.peer.ip(
            f"addr del {world.silent4}/32 dev lo", f"route add blackhole {world.silent4}/32"
        )
    assert fetch(url) == "TimeoutError"
    guest.mediated(3, "connect", world.silent4)


def test_the_hosts_address_changes(guest, fetch):
    world, url = guest.world, f"http://{guest.world.web4}/address"
    assert fetch(url) == world.host.addr4
    roamed = "203.0.113.77"
    world.host.ip(
        f"addr add {roamed}/24 dev up0",
        f"route replace default via {world.peer.addr4} src {roamed}",
    )
    try:
        assert fetch(url) == roamed
    finally:
        world.host.ip(
            f"route replace default via {world.peer.addr4}", f"addr del {roamed}/24 dev up0"
        )
    assert fetch(url) == world.host.addr4
    guest.mediated(3, "connect", f"{world.web4}:80")


def test_policy_routing_is_followed(guest, fetch):
    world, url = guest.world, f"http://{guest.world.web4}/address"
    second = "203.0.113.78"
    world.host.ip(f"addr add {second}/24 dev up0")
    try:
        assert fetch(url) == world.host.addr4
        world.host.ip(
            f"route add {world.web4}/32 via {world.peer.addr4} src {second} table 77",
            f"rule add to {world.web4} table 77",
        )
        try:
            assert fetch(url) == second
        finally:
            world.host.ip(f"rule del to {world.web4} table 77", "route flush table 77")
    finally:
        world.host.ip(f"addr del {second}/24 dev up0")
    guest.mediated(2, "connect", f"{world.web4}:80")


def test_resolv_conf_is_rewritten(guest, fetch):
    world = guest.world
    before = world.read("/etc/resolv.conf")
    try:
        # Nobody answers there: the name is not found, at the latest when the resolver gives up.
        world.write("/etc/resolv.conf", f"nameserver {world.web4}\noptions timeout:1 attempts:1\n")
        assert fetch("http://v4only.test/") == "gaierror"
    finally:
        world.write("/etc/resolv.conf", before)
    assert fetch("http://v4only.test/") == "hello from the world"
    guest.mediated(1, "connect", "198.51.100.11:80")


def test_the_hosts_file_is_rewritten(guest, fetch):
    world = guest.world
    before = world.read("/etc/hosts")
    assert fetch("http://new.test/") == "gaierror"
    try:
        world.write("/etc/hosts", before + f"{world.web4} new.test\n")
        assert fetch("http://new.test/") == "hello from the world"
    finally:
        world.write("/etc/hosts", before)
    guest.mediated(1, "connect", f"{world.web4}:80")
