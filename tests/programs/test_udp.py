"""Programs that use UDP and ICMP, as ordinary user and as root: socat, dig, iperf3, chrony, logger, ping, QUIC."""

import json
import socket
import subprocess
import sys
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest
from udpkit import ask, free_port, relayed, serving

from world.fixtures import only
from world.namespaces import eventually, needs

SOURCES = Path(__file__).parent / "sources"
kernels = pytest.mark.parametrize("guest", only("native", "direct", "relay", "ring"), indirect=True)
guests = pytest.mark.parametrize("guest", only("direct", "relay", "ring"), indirect=True)
users = pytest.mark.parametrize("user", ["xstest", "root"])
families = pytest.mark.parametrize("family", [4, 6])


def address(world, where, family):
    if family == 6 and not world.has_ipv6:
        pytest.skip("this host has no IPv6")
    return {
        ("far", 4): world.peer.addr4,
        ("far", 6): world.peer.addr6,
        ("here", 4): world.host.addr4,
        ("here", 6): world.host.addr6,
    }[where, family]


@pytest.fixture(scope="module")
def far_echo(world):
    """A UDP port of the peer that answers with what it was sent."""
    port = free_port(world.peer)
    log = world.directory / "udp-echo.log"
    services = [
        world.peer.service(
            ["socat", "-b", "65536", f"UDP{v}-RECVFROM:{port},{more}fork", "EXEC:cat"], log
        )
        for v, more in (("4", ""), ("6", "ipv6only=1,"))
        if v == "4" or world.has_ipv6
    ]
    serving(world.peer, port)
    yield port
    for service in services:
        service.kill()


@needs("socat")
@users
@families
@kernels
def test_socat_client(guest, far_echo, family, user):
    host = address(guest.world, "far", family)
    name = host if family == 4 else f"[{host}]"
    argv = ["socat", "-T", "2", "-t", "2", "-", f"UDP{family}:{name}:{far_echo}"]
    done = guest.run(argv, input="hello", user=user, check=True)
    assert done.stdout == "hello"
    relayed(guest, 1, "connect", f"{name}:{far_echo}/udp")


@needs("socat")
@users
@families
@kernels
def test_socat_server_knows_its_clients(guest, family, user):
    world, port = guest.world, free_port(guest.world.host)
    listen = f"UDP{family}-RECVFROM:{port},fork"
    # It reads first: socat gives up an answer when it cannot pass the question on.
    script = "SYSTEM:head -c 8 >/dev/null; echo $SOCAT_PEERADDR $SOCAT_PEERPORT"
    with guest.popen(["socat", listen, script], user=user):
        serving(world.host, port)
        for _ in range(3):
            said, me = ask(world.peer, address(world, "here", family), port, b"who am I")
            peer, number = said.decode().split()
            assert ip_address(peer.strip("[]")) == ip_address(me[0])
            assert int(number) == me[1]
    relayed(guest, 1, "bind", f":{port}/udp")
    relayed(guest, 3, "accept", "/udp")


@needs("dig", "dnsmasq")
@kernels
def test_dig_at_another_port(guest):
    """A name server that is no name service of the guest's: a datagram like any other."""
    world, port = guest.world, free_port(guest.world.peer)
    argv = ["dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    argv += ["--pid-file", f"--port={port}", "--bind-interfaces", f"--listen-address={world.web4}"]
    argv += ["--address=/other.test/192.0.2.77", "--user=root"]
    service = world.peer.service(argv, world.directory / "dnsmasq-5300.log")
    try:
        serving(world.peer, port)
        dig = ["dig", "+short", "+tries=1", f"@{world.web4}", "-p", str(port), "other.test"]
        assert guest.run(dig, check=True).stdout == "192.0.2.77\n"
        relayed(guest, 1, "connect", f"{world.web4}:{port}/udp")
        closed = ["dig", "+tries=1", f"@{world.web4}", "-p", str(free_port(world.peer)), "a.test"]
        done = guest.run(closed)
        assert done.returncode == 9
        assert "connection refused" in done.stdout
    finally:
        service.kill()


def measured(space, argv):
    report = json.loads(space.run(argv, timeout=30).stdout)
    return None if "error" in report else report


def datagrams(report):
    end = report["end"]
    return end["sum"]["packets"], end.get("sum_received", end["sum"])["lost_percent"]


@needs("iperf3")
@users
@pytest.mark.parametrize("reverse", [False, True], ids=["send", "receive"])
@kernels
def test_iperf3_client(guest, reverse, user):
    world, port = guest.world, free_port(guest.world.peer)
    service = world.peer.service(
        ["iperf3", "-s", "-B", world.web4, "-p", str(port)], world.directory / "iperf3-udp.log"
    )
    try:
        eventually(lambda: port in world.peer.listening(), 20, "iperf3 on the peer")
        argv = ["iperf3", "-J", "-u", "-c", world.web4, "-p", str(port), "-t", "1", "-b", "20M"]
        argv += ["-l", "1200"]  # else it follows the segments of its TCP connection
        argv += ["-R"] if reverse else []
        # A busy machine loses some of 20 Mbit/s now and then, but not each time.
        for _ in range(5):
            done = guest.run(argv, user=user, timeout=30)
            report = json.loads(done.stdout)
            assert done.returncode == 0, report.get("error")
            if "error" in report:
                continue
            count, lost = datagrams(report)
            if count > 1000 and lost < 20:
                break
        assert "error" not in report, report["error"]
        assert count > 1000
        assert lost < 20
    finally:
        service.kill()
    relayed(guest, 1, "connect", f"{world.web4}:{port}/udp")


@needs("iperf3")
@kernels
def test_iperf3_server(guest):
    """The server connects a socket of its own for each client, beside the one that all call."""
    world, port = guest.world, free_port(guest.world.host)
    argv = ["iperf3", "-J", "-u", "-c", world.host.addr4, "-p", str(port), "-t", "1", "-b", "10M"]
    with guest.popen(["iperf3", "-s", "-p", str(port)], listens=port):
        for _ in range(2):
            # It turns a client away while it is not done with the one before.
            report = eventually(lambda: measured(world.peer, argv), 60, "a measurement")
            assert datagrams(report)[0] > 500
    relayed(guest, 1, "bind", f":{port}/udp")


@needs("chronyd")
@kernels
def test_chrony_asks_for_the_time(guest):
    world, port = guest.world, free_port(guest.world.peer)
    conf = world.directory / "chrony.conf"
    conf.write_text(
        f"port {port}\nbindaddress {world.web4}\ncmdport 0\nlocal stratum 8\nallow all\n"
        f"driftfile {world.directory}/chrony.drift\npidfile {world.directory}/chrony-{port}.pid\n"
        "bindcmdaddress /\n"
    )
    argv = ["chronyd", "-d", "-x", "-u", "root", "-f", str(conf)]
    service = world.peer.service(argv, world.directory / "chrony.log")
    try:
        serving(world.peer, port)
        client = guest.directory / "client.conf"
        client.write_text(
            f"server {world.web4} port {port} iburst maxsamples 4\ncmdport 0\nbindcmdaddress /\n"
            f"pidfile {guest.directory}/client.pid\n"
        )
        ask_time = ["chronyd", "-Q", "-t", "20", "-u", "root", "-f", str(client)]
        done = guest.run(ask_time, user="root", timeout=40)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "System clock wrong by" in done.stdout + done.stderr
    finally:
        service.kill()
    if not guest.native:
        assert [c for c in guest.calls if f"{world.web4}:{port}/udp" in c["target"]]


@needs("logger")
@kernels
def test_logger_sends_to_a_syslog_server(guest):
    world = guest.world
    with world.peer.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind((world.peer.addr4, 0))
        port = sock.getsockname()[1]
        argv = ["logger", "-d", "-n", world.peer.addr4, "-P", str(port), "-t", "guest", "hello"]
        guest.run(argv, check=True)
        data, client = sock.recvfrom(2000)
        assert b"guest" in data
        assert data.endswith(b"hello")
        assert client[0] == world.host.addr4
    relayed(guest, 1, "connect", f":{port}/udp")


@contextmanager
def group_range(world, groups):
    """These groups may have ping sockets on the host (icmp(7))."""
    path = "/proc/sys/net/ipv4/ping_group_range"
    before = world.host.run(["cat", path]).stdout.strip()
    done = world.host.run(["sh", "-c", f"echo {groups} >{path}"])
    assert done.returncode == 0, done.stderr
    try:
        yield
    finally:
        world.host.run(["sh", "-c", f"echo {before} >{path}"])


@pytest.fixture
def pings(world):
    """Everybody on the host may ping, as distributions have it."""
    with group_range(world, "0 0" if ranged() else f"0 {2**31 - 1}"):
        yield


@pytest.fixture
def no_pings(world):
    """No group on the host may have ping sockets, as the kernel has it."""
    if ranged():
        pytest.skip("the one group of a user namespace cannot be excluded")
    with group_range(world, "1 0"):
        yield


def ranged():
    """Whether this world is a user namespace, which has one group."""
    return not Path("/proc/self/gid_map").read_text().split()[2].startswith("4294967295")


@needs("ping")
@users
@families
@kernels
def test_ping(guest, pings, family, user):
    host = address(guest.world, "far", family)
    # With a deadline it goes on until three were answered, however late.
    argv = ["ping", "-n", "-c", "3", "-i", "0.2", "-w", "30", host]
    done = guest.run(argv, user=user, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " packets transmitted, 3 received" in done.stdout
    assert done.stdout.count(f"from {host}: icmp_seq=") == 3
    assert done.stdout.count(" ttl=64 ") == 3
    relayed(guest, 1, "send", f"{host}/icmp" if family == 4 else f"[{host}]/icmp")


def ping_once(guest, family, user):
    host = address(guest.world, "far", family)
    return guest.run(["ping", "-n", "-c", "1", "-w", "30", host], user=user)


@needs("ping")
@families
@pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
def test_ping_of_root_where_no_group_may(guest, no_pings, family):
    """It has raw sockets natively, and a backend that is embedded has them for it."""
    done = ping_once(guest, family, "root")
    assert done.returncode == 0, done.stdout + done.stderr


@needs("ping")
@families
@pytest.mark.parametrize("guest", only("ring"), indirect=True)
def test_ping_of_root_over_rings_where_no_group_may(guest, no_pings, family):
    """Another backend gives ping sockets only, from which root is not excepted."""
    done = ping_once(guest, family, "root")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "not permitted" in done.stderr


@needs("ping")
@families
@guests
def test_ping_of_others_where_no_group_may(guest, no_pings, family):
    done = ping_once(guest, family, "xstest")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "not permitted" in done.stderr


@needs("ping")
@guests
def test_ping_is_refused_by_policy(guest, pings):
    world = guest.world
    argv = ["ping", "-n", "-c", "1", "-W", "2", world.web4]
    done = guest.run(argv, options=("--allow", f"{world.web4}:80"))
    assert done.returncode != 0
    done = guest.run(argv, options=("--allow", f"{world.web4}/icmp"))
    assert done.returncode == 0, done.stdout + done.stderr


@needs("socat")
@guests
def test_rules_by_name(guest, far_echo):
    """A name rule opens the addresses that the name has, for datagrams as for connections."""
    world = guest.world
    options = ("--allow", "web.test")
    done = guest.run(
        ["socat", "-T", "1", "-", f"UDP4:web.test:{world.refused_port}"], options=options, input="x"
    )
    assert "Permission denied" not in done.stderr
    other = guest.run(
        ["socat", "-T", "1", "-", f"UDP4:{world.peer.addr4}:{far_echo}"], options=options, input="x"
    )
    assert "Permission denied" in other.stderr
    asked = [c for c in guest.calls if c["target"] == f"{world.web4}:{world.refused_port}/udp"]
    assert [(c["decision"], c["name"], c["rule"]) for c in asked] == [
        ("allow", "web.test", "web.test")
    ]


@needs("socat")
@guests
def test_publish(guest):
    world, port = guest.world, free_port(guest.world.host)
    options = ("--publish", f"{port}:5005/udp")
    if guest.datapath != "ring":
        options += (
            "--deny",
            "listen:any",
        )  # another backend's rules hold for what is published too
    with guest.popen(["socat", "UDP4-RECVFROM:5005,fork", "EXEC:cat"], options=options):
        serving(world.host, port)
        assert ask(world.peer, world.host.addr4, port, b"hello")[0] == b"hello"


@needs("socat")
@guests
def test_two_guests_do_not_share_a_port(guest):
    world, port = guest.world, free_port(guest.world.host)
    argv = ["socat", f"UDP4-RECVFROM:{port},fork,reuseaddr", "EXEC:cat"]
    with guest.popen(argv):
        serving(world.host, port)
        second = guest.run(argv)
        assert second.returncode == 1
        assert "Address already in use" in second.stderr
        # They reach each other by the host's address, as everybody does.
        client = ["socat", "-T", "2", "-t", "2", "-", f"UDP4:{world.host.addr4}:{port}"]
        assert guest.run(client, input="neighbour", check=True).stdout == "neighbour"


@guests
def test_multicast_and_broadcast_only_by_rule(guest):
    script = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
sock.setsockopt(socket.IPPROTO_IP, 11, 1)
sock.settimeout(5)
for host in ("239.1.2.3", "255.255.255.255"):
    sock.sendto(b"x", (host, 5005))
"""
    world = guest.world
    with world.peer.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        member = socket.inet_aton("239.1.2.3") + socket.inet_aton(world.peer.addr4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
        sock.bind(("239.1.2.3", 5005))
        guest.run([world.python, "-c", script], check=True)
        denied = {c["target"] for c in guest.calls if c["decision"] == "deny"}
        assert denied == {"239.1.2.3:5005/udp", "255.255.255.255:5005/udp"}
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.recv(10)
        sock.settimeout(10)
        guest.run([world.python, "-c", script], check=True, options=("--allow", "239.0.0.0/8"))
        assert sock.recv(10) == b"x"


@pytest.fixture(scope="session")
def aioquic(world):
    """A directory with aioquic, to be put into PYTHONPATH; what is installed is fixed by hashes."""
    where = world.directory / "aioquic"
    lock = Path(__file__).parent / "quic.lock"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    command += ["--require-hashes", "--only-binary=:all:", "--no-deps", "--target", str(where)]
    done = subprocess.run([*command, "-r", str(lock)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"aioquic cannot be installed here: {done.stderr.strip()[-200:]}")
    subprocess.run(["chmod", "-R", "a+rX", str(where)], check=True)
    program = where / "quic.py"
    program.write_text((SOURCES / "quic.py").read_text())
    return where


@families
@kernels
def test_quic_client(guest, aioquic, family):
    world, port = guest.world, free_port(guest.world.peer)
    host = address(world, "far", family)
    env = {"PYTHONPATH": str(aioquic)}
    argv = [world.python, str(aioquic / "quic.py"), "serve", host, str(port), str(aioquic)]
    service = world.peer.service(argv, world.directory / "quic.log", env=env)
    try:
        serving(world.peer, port)
        client = [world.python, str(aioquic / "quic.py"), "ask", host, str(port), "1000000"]
        done = guest.run(client, env=env, check=True, timeout=40)
        assert done.stdout == "999936 True\n"
    finally:
        service.kill()
    if not guest.native:
        assert [c for c in guest.calls if f":{port}/udp" in c["target"] and not c["error"]]


@families
@kernels
def test_quic_server(guest, aioquic, family):
    world, port = guest.world, free_port(guest.world.host)
    host = address(world, "here", family)
    env = {"PYTHONPATH": str(aioquic)}
    program = str(aioquic / "quic.py")
    argv = [world.python, program, "serve", host, str(port), str(guest.directory)]
    with guest.popen(argv, env=env):
        serving(world.host, port)
        client = [world.python, program, "ask", host, str(port), "300000"]
        done = world.peer.run(client, env=env, timeout=40)
        assert done.stdout == "299776 True\n", done.stderr
    relayed(guest, 1, "bind", f":{port}/udp")
