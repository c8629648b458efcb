"""redis-server in a guest with clients outside, and clients in a guest with a server outside."""

import pytest

from world.namespaces import eventually, needs

pytestmark = needs("redis-server", "redis-cli", "redis-benchmark")


def server(address, port):
    argv = ["redis-server", "--bind", address, "--port", str(port), "--save", ""]
    return [*argv, "--appendonly", "no", "--protected-mode", "no"]


def cli(run, address, port, *words):
    argv = ["redis-cli", "-h", address, "-p", str(port), *words]
    return run(argv, check=True).stdout.splitlines()


def benchmark(run, address, port):
    """Requests per second by test, as redis-benchmark reports them."""
    argv = ["redis-benchmark", "-h", address, "-p", str(port), "-n", "3000", "-c", "25", "--csv"]
    lines = run([*argv, "-t", "ping,set,get,lpush,lrange_100"], check=True).stdout.splitlines()
    return [cells[0].strip('"') for cells in (line.split(",") for line in lines[1:])]


TESTS = ["PING_INLINE", "PING_MBULK", "SET", "GET", "LPUSH", "LPUSH (needed to benchmark LRANGE)"]
TESTS.append("LRANGE_100 (first 100 elements)")


@pytest.fixture(scope="module")
def remote(world):
    """A server on the peer; its port."""
    port = 6379
    log = world.directory / "redis.log"
    process = world.peer.service(server(world.web4, port), log, cwd=world.directory)
    eventually(lambda: port in world.peer.listening(), 20, "redis on the peer")
    yield port
    process.kill()


def test_server(guest):
    port, address, run = guest.port(), guest.world.host.addr4, guest.world.peer.run
    with guest.popen(server(address, port), listens=port):
        assert cli(run, address, port, "SET", "key", "value") == ["OK"]
        assert cli(run, address, port, "GET", "key") == ["value"]
        assert f" addr={guest.world.peer.addr4}:" in cli(run, address, port, "CLIENT", "LIST")[0]
        assert benchmark(run, address, port) == TESTS
        assert cli(run, address, port, "CONFIG", "GET", "bind") == ["bind", address]
    guest.mediated(1, "listen", f":{port}")


def test_clients(guest, remote):
    address = guest.world.web4
    assert cli(guest.run, address, remote, "SET", "key", guest.datapath) == ["OK"]
    assert cli(guest.run, address, remote, "GET", "key") == [guest.datapath]
    listed = cli(guest.run, address, remote, "CLIENT", "LIST")
    assert f" addr={guest.world.host.addr4}:" in listed[0]
    assert benchmark(guest.run, address, remote) == TESTS
    guest.mediated(3 + 25 * 5, "connect", f"{address}:{remote}")


def test_messages_from_one_guest_to_another(guest, remote):
    address = guest.world.web4
    listen = ["redis-cli", "-h", address, "-p", str(remote), "SUBSCRIBE", "news"]
    with guest.popen(listen) as subscriber:
        eventually(
            lambda: cli(guest.run, address, remote, "PUBLISH", "news", "hello") == ["1"],
            15,
            "the subscriber is there",
        )
        eventually(lambda: "hello" in subscriber.stdout, 5, "the message came")
    guest.mediated(2, "connect", f"{address}:{remote}")
