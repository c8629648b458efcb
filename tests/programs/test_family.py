"""AF_XENSOCK: any language reaches it by socket(2), and with `--family own` nothing else leaves the guest."""

import subprocess
from pathlib import Path

import pytest
from languages import bring

from world.fixtures import only
from world.namespaces import needs

pytestmark = pytest.mark.parametrize("guest", only("direct", "relay", "ring"), indirect=True)
OWN = ("--family", "own")
BOTH = pytest.mark.parametrize("options", [(), OWN], ids=["inet", "own"])


@pytest.fixture
def program(world):
    source = bring(world, "family.c")
    built = source.with_name("family")
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", "-o", built, source], check=True)
    return str(built)


@BOTH
@pytest.mark.parametrize("family", [4, 6])
def test_a_c_program_connects(guest, program, options, family):
    world = guest.world
    if family == 6 and not world.has_ipv6:
        pytest.skip("this host has no IPv6")
    address = f"::ffff:{world.web4}" if family == 4 else world.web6
    done = guest.run([program, address, str(world.echo_port)], options=options, check=True)
    assert done.stdout == "hello\n"
    guest.mediated(1, "connect", f":{world.echo_port}")


@BOTH
def test_a_c_program_serves(guest, program, options):
    world, port = guest.world, guest.port()
    argv = [program, "::", str(port), "serve"]
    with guest.popen(argv, options=options, listens=port) as running:
        with world.peer.connect(world.host.addr4, port) as sock:
            sock.sendall(b"from outside")
            assert sock.recv(100) == b"from outside"
        assert running.wait() == 0


PERL = """
use strict; use Socket qw(SOCK_STREAM inet_pton AF_INET6);
my ($address, $port) = @ARGV;
socket(my $sock, 0x5853, SOCK_STREAM, 0) or die "socket: $!\\n";
my $name = pack("S n N a16 L", 0x5853, $port, 0, inet_pton(AF_INET6, $address), 0);
connect($sock, $name) or die "connect: $!\\n";
syswrite($sock, "hello"); sysread($sock, my $said, 100); print "$said\\n";
"""


@needs("perl")
@BOTH
def test_another_language(guest, options):
    """It knows nothing of XenSock, and needs no more than socket(2)."""
    world = guest.world
    argv = ["perl", "-e", PERL, f"::ffff:{world.web4}", str(world.echo_port)]
    assert guest.run(argv, options=options, check=True).stdout == "hello\n"
    guest.mediated(1, "connect", f":{world.echo_port}")


@BOTH
def test_policy_decides(guest, program, options):
    world = guest.world
    rules = ("--deny", world.web4, *options)
    done = guest.run([program, f"::ffff:{world.web4}", str(world.echo_port)], options=rules)
    assert "connect: Permission denied" in done.stderr


@BOTH
def test_a_python_program(guest, options):
    world = guest.world
    text = f"""
import xensock
sock = xensock.socket(xensock.AF_XENSOCK)
sock.connect(("{world.web4}", {world.echo_port}))
print(sock.family == xensock.AF_XENSOCK, sock.getpeername()[0])
sock.sendall(b"hello")
print(sock.recv(5))
"""
    done = guest.run(
        [str(Path(guest.xensock[0]).with_name("python")), "-c", text], options=options, check=True
    )
    assert done.stdout.splitlines() == [f"True ::ffff:{world.web4}", "b'hello'"]


def test_the_others_stay_inside(guest):
    world = guest.world
    text = f"""
import socket
try:
    socket.create_connection(("{world.web4}", {world.echo_port}), 5)
except OSError as error:
    print(error.errno)
with socket.create_server(("127.0.0.1", 8000)) as server:
    with socket.create_connection(("127.0.0.1", 8000)) as client:
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"inside")
            print(accepted.recv(100))
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.settimeout(0.5)
try:
    udp.sendto(b"x", ("{world.web4}", {world.echo_port}))
    print(udp.recv(100))
except OSError as error:
    print(type(error).__name__)
try:
    socket.socket(0x5853, socket.SOCK_DGRAM)
except OSError as error:
    print(error.errno)
"""
    done = guest.run(["python3", "-c", text], options=OWN, check=True)
    first, *rest = done.stdout.splitlines()
    assert first == "111"
    assert rest[0] == "b'inside'"
    assert rest[1] in ("TimeoutError", "ConnectionRefusedError")
    assert rest[2] == "94"
    assert all(call["datapath"] == "guest" for call in guest.calls)
