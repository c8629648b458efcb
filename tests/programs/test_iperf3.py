"""iperf3 in both directions, as client and as server in a guest."""

import json

import pytest

from world.namespaces import eventually, needs

pytestmark = needs("iperf3")
BYTES = 200_000_000
directions = pytest.mark.parametrize("reverse", [False, True], ids=["send", "receive"])


@pytest.fixture(scope="module")
def remote(world):
    """A server on the peer; its port."""
    port = 5201
    log = world.directory / "iperf3.log"
    process = world.peer.service(["iperf3", "-s", "-B", world.web4, "-p", str(port)], log)
    eventually(lambda: port in world.peer.listening(), 20, "iperf3 on the peer")
    yield port
    process.kill()


def measure(run, address, port, reverse, streams):
    """Move BYTES and compare what both ends counted."""
    argv = ["iperf3", "-J", "-c", address, "-p", str(port), "-n", str(BYTES), "-P", str(streams)]
    done = run([*argv, *(["-R"] if reverse else [])], timeout=30)
    report = json.loads(done.stdout)
    assert done.returncode == 0, report.get("error")
    assert len(report["start"]["connected"]) == streams
    end = report["end"]
    assert end["sum_sent"]["bytes"] >= BYTES
    # What is still in buffers when the sender has said that it is done is not counted: a few MB for each stream and
    # connection on the way, natively too.
    assert end["sum_received"]["bytes"] >= BYTES - 20_000_000 * streams


@directions
@pytest.mark.parametrize("streams", [1, 3])
def test_client(guest, remote, reverse, streams):
    measure(guest.run, guest.world.web4, remote, reverse, streams)
    guest.mediated(1 + streams, "connect", f"{guest.world.web4}:{remote}")


@directions
def test_server(guest, reverse):
    port, address = guest.port(), guest.world.host.addr4
    with guest.popen(["iperf3", "-s", "-B", address, "-p", str(port)], listens=port):
        measure(guest.world.peer.run, address, port, reverse, 2)
    guest.mediated(1, "listen", f":{port}")
