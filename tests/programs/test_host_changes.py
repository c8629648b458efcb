"""The host's network changes while guests run: new calls follow, old connections behave as natively.

Every test runs natively as well: the native run is the control that says what "as natively" means.
"""

import contextlib
import subprocess

import pytest
from languages import bring

from world.fixtures import only
from world.internet import ECHO
from world.namespaces import eventually

# A second way from the host to the net: another wireless network, another provider.
NEAR, FAR, MOVED = "192.0.2.130", "192.0.2.129", "192.0.2.131"
TABLE = 121


class Program:
    """One program that stays, in one guest, over all changes; see sources/changes.py."""

    def __init__(self, guest):
        self.guest = guest
        script = str(bring(guest.world, "changes.py"))
        self.running = guest.popen([guest.world.python, script], stdin=subprocess.PIPE)
        self.answers = 0

    def __call__(self, line, timeout=20):
        self.running.process.stdin.write(f"{line}\n".encode())
        self.running.process.stdin.flush()
        self.answers += 1
        said = lambda: self.running.stdout.count("\n") >= self.answers  # noqa: E731
        try:
            eventually(said, timeout, f"an answer to {line!r}")
        except AssertionError as error:
            error.add_note(f"{self.running.stdout}\n{self.running.stderr}\n{self.guest.tail()}")
            raise
        return self.running.stdout.splitlines()[self.answers - 1]


@pytest.fixture
def program(guest):
    made = Program(guest)
    with made.running:
        yield made
        made.running.process.stdin.close()
        assert made.running.wait() == 0, made.running.stderr


@pytest.fixture
def second(world):
    """The second way, as `host wlan0 192.0.2.130 ── 192.0.2.129 ap0 net`; no route uses it yet."""
    world.host.ip(f"link add wlan0 type veth peer name ap0 netns {world.peer.name}")
    try:
        world.host.ip(f"addr add {NEAR}/28 dev wlan0", "link set wlan0 up")
        world.peer.ip(f"addr add {FAR}/28 dev ap0", "link set ap0 up")
        yield
    finally:
        world.host.ip("link del wlan0")


@contextlib.contextmanager
def changed(world, change, back):
    """The host's network, changed for a while."""
    world.host.ip(*change)
    try:
        yield
    finally:
        world.host.ip(*back)


@contextlib.contextmanager
def over_second(world):
    with changed(
        world,
        [f"route replace default via {FAR}"],
        [f"route replace default via {world.peer.addr4}"],
    ):
        yield


def test_the_default_route_is_replaced(guest, program, second):
    world = guest.world
    assert program(f"get {world.web4}") == world.host.addr4
    assert program(f"open old {world.web4} {ECHO}") == "open"
    assert program("say old before 3") == "before"
    with over_second(world):
        assert program(f"get {world.web4}") == NEAR
        # The old one keeps its address, which is still the host's.
        assert program("say old during 3") == "during"
        assert program(f"open new {world.web4} {ECHO}") == "open"
    assert program(f"get {world.web4}") == world.host.addr4
    assert program("say old after 3") == "after"
    assert program("say new after 3") == "after"
    guest.mediated(5, "connect", world.web4)


def test_no_way_out_is_known_at_once_and_ends(guest, program):
    world = guest.world
    default = f"default via {world.peer.addr4}"
    assert program(f"get {world.web4}") == world.host.addr4
    with changed(world, [f"route del {default}"], [f"route add {default}"]):
        assert program(f"get {world.web4}") == "ENETUNREACH"
    assert program(f"get {world.web4}") == world.host.addr4
    with changed(
        world, [f"route add prohibit {world.web4}/32"], [f"route del prohibit {world.web4}/32"]
    ):
        assert program(f"get {world.web4}") == "EACCES"
    with changed(
        world,
        [f"route add unreachable {world.web4}/32"],
        [f"route del unreachable {world.web4}/32"],
    ):
        assert program(f"get {world.web4}") == "EHOSTUNREACH"
    assert program(f"get {world.web4}") == world.host.addr4
    guest.mediated(6, "connect", world.web4)


def test_the_address_changes_and_comes_back(guest, program, second):
    """Roaming: what was connected from the old address falls silent, and goes on if it returns."""
    world = guest.world
    with over_second(world):
        assert program(f"open old {world.web4} {ECHO}") == "open"
        assert program("say old before 3") == "before"
        roam = [f"addr del {NEAR}/28 dev wlan0", f"addr add {MOVED}/28 dev wlan0"]
        back = [f"addr del {MOVED}/28 dev wlan0", f"addr add {NEAR}/28 dev wlan0"]
        default = f"route replace default via {FAR}"  # goes with the last address
        with changed(world, [*roam, default], [*back, default]):
            assert program(f"get {world.web4}") == MOVED
            assert program(f"open new {world.web4} {ECHO}") == "open"
            assert program("say new during 3") == "during"
            assert program("say old lost 0.5") == "silence"
        # TCP repeats what was not acknowledged.
        assert program("say old -found 10") == "lost-f"
        assert program("close new") == "closed"
    guest.mediated(3, "connect", world.web4)


def lose_the_network(world, program):
    """How a connection ends whose address is gone for good."""
    assert program("say old before 3") == "before"
    roam = [f"addr del {NEAR}/28 dev wlan0", f"addr add {MOVED}/28 dev wlan0"]
    back = [f"addr del {MOVED}/28 dev wlan0", f"addr add {NEAR}/28 dev wlan0"]
    default = f"route replace default via {FAR}"
    with changed(world, [*roam, default], [*back, default]):
        return program("say old lost 10")


def test_a_lost_network_is_noticed_by_user_timeout(guest, program, second):
    """A program that set TCP_USER_TIMEOUT (tcp(7)) learns that its connection is dead."""
    world = guest.world
    # Over the relay it learns that by a reset (docs/explanation/relay.md, "Limits").
    end = "ECONNRESET" if guest.datapath in ("relay", "ring") else "ETIMEDOUT"
    with over_second(world):
        assert program(f"open old {world.web4} {ECHO} 700") == "open"
        assert lose_the_network(world, program) == end
    guest.mediated(1, "connect", f"{world.web4}:{ECHO}")


# Over the relay, options that shape the network are those at the time of connect.
@pytest.mark.parametrize("guest", only("native", "direct"), indirect=True)
def test_a_user_timeout_that_is_set_later(guest, program, second):
    world = guest.world
    with over_second(world):
        assert program(f"open old {world.web4} {ECHO}") == "open"
        assert program("option old 700") == "set"
        assert lose_the_network(world, program) == "ETIMEDOUT"
    guest.mediated(1, "connect", f"{world.web4}:{ECHO}")


def test_the_server_goes_away_and_resets(guest, program, second):
    """The far side reboots: its reset reaches the program."""
    world = guest.world
    with over_second(world), world.peer.listen(FAR) as listener:
        assert program(f"open old {FAR} {listener.getsockname()[1]}") == "open"
        far, _ = listener.accept()
        with far:
            far.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: close resets
        assert program("say old more 3") in ("ECONNRESET", "EPIPE")


@pytest.mark.parametrize("selector", ["destination", "user"])
def test_policy_routing_is_added(guest, program, second, selector):
    """A rule by destination, and one by user: a guest's calls are those of who started it."""
    world = guest.world
    what = f"to {world.web4}" if selector == "destination" else _by_user(world)
    assert program(f"open old {world.web4} {ECHO}") == "open"
    add = [f"route add default via {FAR} table {TABLE}", f"rule add {what} table {TABLE}"]
    remove = [f"rule del {what} table {TABLE}", f"route flush table {TABLE}"]
    with changed(world, add, remove):
        assert program(f"get {world.web4}") == NEAR
        assert program("say old during 3") == "during"
        other = world.host.addr4 if selector == "destination" else NEAR
        assert program("get 198.51.100.11") == other
    assert program(f"get {world.web4}") == world.host.addr4
    assert program("say old after 3") == "after"
    guest.mediated(4, "connect", "198.51.100.1")


def _by_user(world):
    return f"uidrange {world.user.seen}-{world.user.seen}"


def heard(world, address, port):
    """Who a server of the guest says we are, None when nobody answers there."""
    try:
        with world.peer.connect(address, port, timeout=1) as sock, sock.makefile() as file:
            return file.readline().strip()
    except OSError:
        return None


def test_a_wildcard_server_is_reached_at_a_new_address(guest, program, second):
    world, port = guest.world, guest.port()
    assert program(f"serve any {port}") == "serving"
    assert heard(world, world.host.addr4, port) == world.peer.addr4
    assert heard(world, NEAR, port) == FAR
    with changed(world, [f"addr add {MOVED}/28 dev wlan0"], [f"addr del {MOVED}/28 dev wlan0"]):
        assert heard(world, MOVED, port) == FAR
    assert heard(world, NEAR, port) == FAR
    guest.mediated(1, "listen", f":{port}")


def test_a_server_on_one_address_lives_through_its_absence(guest, program, second):
    world, port = guest.world, guest.port()
    assert program(f"serve {NEAR} {port}") == "serving"
    assert heard(world, NEAR, port) == FAR
    assert heard(world, world.host.addr4, port) is None
    with changed(world, [f"addr del {NEAR}/28 dev wlan0"], [f"addr add {NEAR}/28 dev wlan0"]):
        assert heard(world, NEAR, port) is None
    # Neighbours may have to be found again.
    assert eventually(lambda: heard(world, NEAR, port), 10, "the server at its address") == FAR
    guest.mediated(1, "listen", f"{NEAR}:{port}")


def test_an_address_that_the_host_gets_later_can_be_bound(guest, program, second):
    world, port = guest.world, guest.port()
    assert program(f"serve {MOVED} {port}") == "EADDRNOTAVAIL"
    with changed(world, [f"addr add {MOVED}/28 dev wlan0"], [f"addr del {MOVED}/28 dev wlan0"]):
        assert program(f"serve {MOVED} {port}") == "serving"
        assert heard(world, MOVED, port) == FAR
    guest.mediated(1, "listen", f"{MOVED}:{port}")


def test_both_ways_through_the_vpn(guest, program, vpn):
    """With no option: a client of a server behind it, and a server for those behind it."""
    world, port = guest.world, guest.port()
    assert program(f"get {vpn.address}") == vpn.client
    assert program(f"get {world.web4}") == world.host.addr4
    assert program(f"serve {vpn.client} {port}") == "serving"
    with vpn.far.connect(vpn.client, port) as sock, sock.makefile() as file:
        assert file.readline().strip() == "10.8.0.1"
    guest.mediated(1, "connect", f"{vpn.address}:80")
    guest.mediated(1, "listen", f"{vpn.client}:{port}")


def test_a_vpn_that_takes_everything_is_switched_on_and_off(guest, program, vpn):
    """As VPN clients do it: two halves of the address space, more specific than the default."""
    world = guest.world
    far = "10.8.0.1"
    assert program(f"open old {world.web4} {ECHO}") == "open"
    halves = [f"{half} via {far}" for half in ("0.0.0.0/1", "128.0.0.0/1")]
    outer = f"192.0.2.202/32 via {world.peer.addr4}"  # the tunnel's own packets
    with changed(
        world,
        [f"route add {outer}", *(f"route add {half}" for half in halves)],
        [*(f"route del {half}" for half in halves), f"route del {outer}"],
    ):
        assert program(f"get {vpn.address}") == vpn.client
        # Nothing but the server behind it answers there: what must not leave by the card does not.
        assert program(f"get {world.web4}") in ("silence", "EHOSTUNREACH", "ENETUNREACH")
    assert program(f"get {world.web4}") == world.host.addr4
    assert program("say old after 10") == "after"
    guest.mediated(3, "connect")
