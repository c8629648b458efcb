"""socat as client, server and in the middle: half-close, many connections, both families."""

import threading

import pytest

from world.namespaces import needs

pytestmark = needs("socat")
DATA = bytes(range(256)) * 4000


def exchange(world, address, port, data):
    """Send from the peer, close our direction, take everything that comes."""
    with world.peer.connect(address, port) as sock:
        sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(1)))
        sender.start()
        with sock.makefile("rb") as file:
            answer = file.read()
        sender.join()
    return answer


@pytest.mark.parametrize("family", [4, 6])
def test_client_keeps_half_close(guest, family):
    """All of the input comes back although socat closes its direction first."""
    world = guest.world
    if family == 6 and not world.has_ipv6:
        pytest.skip("this host has no IPv6")
    address = world.web4 if family == 4 else f"[{world.web6}]"
    argv = ["socat", "-t", "20", "-", f"TCP{family}:{address}:{world.echo_port}"]
    assert guest.run(argv, input=DATA, text=False, check=True).stdout == DATA
    guest.mediated(1, "connect", f"{address}:{world.echo_port}")


@pytest.mark.parametrize("family", [4, 6])
def test_server_forks_per_connection(guest, family):
    world, port = guest.world, guest.port()
    if family == 6 and not world.has_ipv6:
        pytest.skip("this host has no IPv6")
    address = world.host.addr4 if family == 4 else world.host.addr6
    bind = address if family == 4 else f"[{address}]"
    listen = f"TCP{family}-LISTEN:{port},bind={bind},reuseaddr,fork"
    with guest.popen(["socat", "-t", "20", listen, "EXEC:cat"], listens=port):
        for data in (b"", b"short", DATA):
            assert exchange(world, address, port, data) == data
    guest.mediated(1, "listen", f"{bind}:{port}")


def test_forwarder_in_the_middle(guest):
    world, port = guest.world, guest.port()
    listen = f"TCP4-LISTEN:{port},bind={world.host.addr4},reuseaddr,fork"
    forward = f"TCP4:{world.web4}:{world.echo_port}"
    with guest.popen(["socat", "-t", "20", listen, forward], listens=port):
        for _ in range(3):
            assert exchange(world, world.host.addr4, port, DATA) == DATA
    guest.mediated(1, "listen", f":{port}")
    guest.mediated(3, "connect", f"{world.web4}:{world.echo_port}")


def test_a_refused_connection_is_reported(guest):
    argv = ["socat", "-", f"TCP4:{guest.world.web4}:{guest.world.refused_port}"]
    done = guest.run(argv)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    guest.mediated(1, "connect", f"{guest.world.web4}:{guest.world.refused_port}")
