"""The world itself: names, servers and holes are as documented, and nothing of it stays behind."""

import errno
import os
import socket
import subprocess
import sys

import pytest

from .internet import LARGE
from .namespaces import RUN, Namespace, alive, eventually, sweep


def curl(world, url, *more):
    return world.host.run(["curl", "-sS", "--max-time", "10", *more, url], user="xstest")


@pytest.mark.parametrize("name", ["web.test", "v4only.test", "alias.test", "intra", "private.test"])
def test_names_lead_to_the_web_server(world, name):
    done = curl(world, f"http://{name}/", "-4")
    assert (done.returncode, done.stdout) == (0, "hello from the world\n"), done.stderr


@pytest.mark.parametrize("name", ["web.test", "v6only.test"])
def test_ipv6(world, name):
    if not world.has_ipv6:
        pytest.skip("this host has no IPv6")
    done = curl(world, f"http://{name}/address", "-6")
    assert done.stdout == "2001:db8:10::10\n", done.stderr


def test_the_server_sees_the_hosts_address(world):
    assert curl(world, "http://v4only.test/address").stdout == "203.0.113.10\n"


def test_large_page(world):
    done = curl(world, "http://v4only.test/large", "-o", "/dev/null", "-w", "%{size_download}")
    assert int(done.stdout) == LARGE


def test_unknown_name(world):
    assert curl(world, "http://nothing.test/").returncode == 6


def test_a_long_answer_comes_over_tcp(world):
    done = world.host.run(["getent", "ahostsv4", "many.test"], user="xstest")
    assert len({line.split()[0] for line in done.stdout.splitlines()}) == 60


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_echo(world, kind):
    with world.host.socket(socket.AF_INET, kind) as sock:
        sock.connect((world.web4, world.echo_port))
        sock.send(b"there and back")
        assert sock.recv(100) == b"there and back"


def test_refused_unreachable_and_silent(world):
    with pytest.raises(ConnectionRefusedError):
        world.host.connect(world.web4, world.refused_port)
    with pytest.raises(OSError, match="No route to host") as caught:
        world.host.connect(world.unreachable4, 80)
    assert caught.value.errno == errno.EHOSTUNREACH
    with pytest.raises(TimeoutError):
        world.host.connect(world.silent4, 80, timeout=0.3)


def test_the_host_has_its_own_files(world):
    before = world.read("/etc/resolv.conf")
    assert f"nameserver {world.dns4}" in before
    try:
        world.write("/etc/resolv.conf", "nameserver 127.0.0.9\n")
        assert world.read("/etc/resolv.conf") == "nameserver 127.0.0.9\n"
    finally:
        world.write("/etc/resolv.conf", before)
    with open("/etc/passwd") as passwd:
        assert world.user.name not in passwd.read()


def test_programs_run_as_an_ordinary_user_who_has_a_home(world):
    done = world.host.run(["sh", "-c", "id -un; cd && touch file && rm file"], user="xstest")
    assert (done.returncode, done.stdout) == (0, "xstest\n"), done.stderr


def test_a_started_program_keeps_its_process_id(world):
    process = world.host.popen(["sh", "-c", "echo $$"], stdout=subprocess.PIPE, user="xstest")
    assert int(process.communicate()[0]) == process.pid


def test_a_server_on_the_host_is_reached_by_the_peer(world):
    with world.host.listen(world.host.addr4) as listener:
        port = listener.getsockname()[1]
        assert port in world.host.listening()
        with world.peer.connect(world.host.addr4, port):
            accepted, address = listener.accept()
            accepted.close()
            assert address[0] == world.peer.addr4


def test_behind_the_vpn(world, vpn):
    url = f"http://{vpn.address}/address"
    assert curl(world, url).stdout == f"{vpn.client}\n"
    # Only the tunnel leads there.
    assert world.peer.run(["curl", "-sS", "--max-time", "1", url]).returncode in (7, 28)


KILLED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from world.internet import World
world = World.create()
child = world.host.popen(["sleep", "1000"], user="xstest", stdout=-3, stderr=-3)
print(world.host.name, world.peer.name, world.directory, child.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_killed_session_is_swept_by_the_next(world):
    tests = os.path.dirname(os.path.dirname(__file__))
    done = subprocess.run([sys.executable, "-c", KILLED, tests], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    host, peer, directory, sleeper = done.stdout.split()
    assert alive(int(sleeper))
    gone = sweep(world.directory.parent)
    assert {host, peer, os.path.basename(directory)} <= set(gone)
    eventually(lambda: not alive(int(sleeper)), 5, "the killed session's program ended")
    assert not (RUN / host).exists()
    assert (RUN / world.host.name).exists(), "a living session's namespace was swept"


def test_close_ends_what_runs_in_the_namespace(world):
    space = Namespace.create("short", world.user)
    process = space.popen(["sh", "-c", "sleep 1000 & sleep 1000"])
    eventually(lambda: len(space.pids()) == 3, 5, "the shell and its two children")
    space.close()
    assert process.wait(5) == -9
    assert not (RUN / space.name).exists()
