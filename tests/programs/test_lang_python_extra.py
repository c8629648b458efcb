"""More of Python's networking: FTP both ways, TLS, file descriptors handed on, prefork, managers."""

import json

import pytest
from languages import bring

from world.internet import ECHO
from world.namespaces import eventually, needs

FTP = 2121
CONTENT = bytes(range(256)) * 3000


def python(guest, source, *words, **kw):
    argv = [guest.world.python, str(bring(guest.world, source)), *map(str, words)]
    return guest.run(argv, check=True, **kw).stdout


@pytest.fixture(scope="module")
def ftp(world):
    """A small FTP server on the peer."""
    script = str(bring(world, "ftp.py"))
    process = world.peer.service(
        [world.python, script, "serve", str(FTP)], world.directory / "ftp.log", user="xstest"
    )
    eventually(lambda: FTP in world.peer.listening(), 20, "the FTP server")
    yield FTP
    process.kill()
    process.wait(10)


@pytest.mark.parametrize("mode", ["active", "passive"])
@pytest.mark.parametrize("family", [4, 6])
def test_ftp(guest, ftp, mode, family):
    """In active mode the guest listens on a port the kernel picks, tells the server that port and
    the address that its connection has, and the server connects to them."""
    world = guest.world
    if family == 6 and not world.has_ipv6:
        pytest.skip("this host has no IPv6")
    server = world.web4 if family == 4 else world.web6
    said = json.loads(python(guest, "ftp.py", "client", server, ftp, mode))
    assert said == {"read": len(CONTENT), "same": True, "stored": f"226 {len(CONTENT)}"}
    guest.mediated(1, "connect", f":{ftp}")
    if mode == "active":
        guest.mediated(2, "listen")
    else:
        guest.mediated(3, "connect", server)


@pytest.fixture(scope="module")
def certificate(world):
    """A self-signed one for v4only.test, in files the world's user may read."""
    place = world.directory / "tls"
    place.mkdir()
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    argv += ["-nodes", "-days", "2", "-subj", "/CN=v4only.test", "-keyout", "key", "-out", "cert"]
    argv += ["-addext", "subjectAltName=DNS:v4only.test,DNS:myself.test"]
    world.host.run(argv, cwd=place, check=True)
    (place / "key").chmod(0o644)
    return place


@needs("openssl")
def test_tls_client_and_server(guest, certificate):
    """The client in one guest; the server natively in the world, then in another guest."""
    world, port = guest.world, guest.port()
    script = str(bring(world, "tls.py"))
    key = [str(certificate / "cert"), str(certificate / "key")]
    server = [world.python, script, "serve", world.host.addr4, str(port), *key]
    with guest.popen(server, listens=port):
        client = [world.python, script, "get", "myself.test", str(port), key[0]]
        outside = world.peer.run(client, user="xstest", check=True).stdout
        assert outside == f"{world.peer.addr4} 500000\n"
        # Two guests are two machines on the host's network.
        inside = guest.run(client, check=True).stdout
        assert inside == f"{world.host.addr4} 500000\n"
    guest.mediated(1, "listen", f":{port}")
    guest.mediated(1, "connect", f"{world.host.addr4}:{port}")


def test_descriptors_handed_on(guest):
    """Connected sockets and listeners by fork, exec, SCM_RIGHTS and dup."""
    world, port = guest.world, guest.port()
    said = python(guest, "handed.py", world.web4, ECHO, world.host.addr4, port)
    assert said.splitlines() == ["inherited ok", "passed ok", "dup ok", "listener ok"]
    guest.mediated(3, "connect", f"{world.web4}:{ECHO}")
    guest.mediated(1, "listen", f":{port}")


def test_a_signal_interrupts_a_connection_that_gets_no_answer(guest):
    said = python(guest, "waiting.py", guest.world.silent4)
    assert said.splitlines() == [
        "handler ran",  # a handler that returns: connect goes on (PEP 475)
        "handler raised",
        "timed out",
        "EINPROGRESS then EALREADY",
        "other threads went on",
    ]
    guest.mediated(4, "connect", guest.world.silent4)


def test_a_multiprocessing_manager_serves_another_guest(guest):
    """Managers speak over TCP: one guest serves a dictionary, processes of another fill it."""
    world, port = guest.world, guest.port()
    argv = [world.python, str(bring(world, "manager.py"))]
    with guest.popen([*argv, "serve", world.host.addr4, str(port)], listens=port):
        done = guest.run([*argv, "fill", world.host.addr4, str(port), "12"], check=True)
        assert done.stdout == "12\n"
        far = world.peer.run([*argv, "count", world.host.addr4, str(port)], user="xstest")
        assert far.stdout == "12\n", far.stderr
    guest.mediated(1, "listen", f":{port}")
    guest.mediated(12, "connect", f"{world.host.addr4}:{port}")


def test_a_dual_stack_server(guest):
    """One listener for both families, clients of both, on the port the kernel picked."""
    world = guest.world
    argv = [world.python, "-c", DUAL]
    with guest.popen(argv) as server:
        port = int(eventually(lambda: server.stdout.strip(), 20, "the port"))
        addresses = [world.host.addr4] + ([world.host.addr6] if world.has_ipv6 else [])
        for address in addresses:
            with world.peer.connect(address, port) as sock:
                said = sock.makefile().readline().strip().removeprefix("::ffff:")
            assert said == (world.peer.addr6 if ":" in address else world.peer.addr4)
    guest.mediated(1, "listen", f":{port}")


DUAL = """
import socket
dual = socket.has_dualstack_ipv6()
family = socket.AF_INET6 if dual else socket.AF_INET
with socket.create_server(("", 0), family=family, dualstack_ipv6=dual) as listener:
    print(listener.getsockname()[1], flush=True)
    while True:
        sock, client = listener.accept()
        with sock:
            sock.sendall(client[0].encode() + b"\\n")
"""
