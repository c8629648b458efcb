"""PostgreSQL: the server in a guest with psql and pgbench outside, and the other way round."""

import glob
import shutil
import signal

import pytest

from world.fixtures import only
from world.namespaces import eventually

FOUND = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
BIN = FOUND[-1] if FOUND else ""
pytestmark = pytest.mark.skipif(not FOUND, reason="needs postgresql: run tools/prepare")


def initdb(run, data, **kw):
    """A new cluster that lets everybody in; no syncing to disk, it is thrown away."""
    argv = [f"{BIN}/initdb", "-D", str(data), "-A", "trust", "-N", "-U", "xstest", "--no-locale"]
    run([*argv, "-E", "UTF8"], check=True, timeout=60, **kw)
    with open(data / "pg_hba.conf", "a") as access:
        access.write("host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n")


def postgres(data, address, port):
    argv = [f"{BIN}/postgres", "-D", str(data), "-p", str(port), "-k", str(data)]
    for setting in (f"listen_addresses={address}", "fsync=off", "max_connections=40"):
        argv += ["-c", setting]
    return argv


def wait_ready(run, address, port):
    """It listens before it lets anybody in ("the database system is starting up")."""
    argv = [f"{BIN}/pg_isready", "-q", "-h", address, "-p", str(port)]
    eventually(lambda: run(argv).returncode == 0, 30, "PostgreSQL accepts connections")


def psql(run, address, port, statement):
    argv = [f"{BIN}/psql", "-X", "-A", "-t", "-h", address, "-p", str(port), "-U", "xstest"]
    return run([*argv, "-d", "postgres", "-c", statement], check=True).stdout.strip()


def pgbench(run, address, port):
    """Fill pgbench's tables, then transactions, a new connection for each of some."""
    where = ["-h", address, "-p", str(port), "-U", "xstest", "postgres"]
    run([f"{BIN}/pgbench", "-i", "-q", "-n", *where], check=True, timeout=60)
    work = run([f"{BIN}/pgbench", "-n", "-c", "8", "-j", "2", "-t", "25", *where], check=True)
    fresh = run([f"{BIN}/pgbench", "-n", "-S", "-C", "-c", "4", "-t", "10", *where], check=True)
    assert "number of transactions actually processed: 200/200" in work.stdout
    assert "number of transactions actually processed: 40/40" in fresh.stdout
    assert psql(run, address, port, "select count(*) from pgbench_history") == "200"


@pytest.fixture(scope="module")
def remote(world):
    """A server on the peer; its port."""
    data, port = world.user.home / "cluster", 5432
    initdb(world.peer.run, data, user="xstest")
    log = world.directory / "postgres.log"
    process = world.peer.service(postgres(data, world.web4, port), log, user="xstest")
    eventually(lambda: port in world.peer.listening(), 30, "PostgreSQL on the peer")
    wait_ready(world.peer.run, world.web4, port)
    yield port
    process.kill()
    process.wait()
    shutil.rmtree(data)


def test_clients(guest, remote):
    address = guest.world.web4
    client = psql(guest.run, address, remote, "select host(inet_client_addr())")
    assert client == guest.world.host.addr4
    rows = psql(guest.run, address, remote, "select repeat('x', 1000) from generate_series(1,3000)")
    assert rows == "\n".join(["x" * 1000] * 3000)
    pgbench(guest.run, address, remote)
    guest.mediated(2 + 1 + 8 + 40, "connect", f"{address}:{remote}")


def test_server(guest):
    port, address, run = guest.port(), guest.world.host.addr4, guest.world.peer.run
    data = guest.directory / "data"
    initdb(guest.run, data)
    with guest.popen(postgres(data, address, port), listens=port) as server:
        wait_ready(run, address, port)
        client = psql(run, address, port, "select host(inet_client_addr())")
        assert client == guest.world.peer.addr4
        pgbench(run, address, port)
        # SIGINT is PostgreSQL's fast shutdown; it ends with status 0.
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0, server.stderr
        assert "database system is shut down" in server.stderr
    guest.mediated(1, "listen", f":{port}")


@pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
def test_a_server_of_the_host_by_its_unix_socket(guest):
    """psql says "permission denied" without a rule for the socket, and is who it is by one (peer authentication)."""
    data = guest.directory / "data"
    initdb(guest.world.host.run, data, user="xstest")
    (data / "pg_hba.conf").write_text("local all all peer\n")
    log = guest.directory / "log"
    with log.open("wb") as out:
        argv = postgres(data, "", 5432)
        process = guest.world.host.popen(argv, user="xstest", stdout=out, stderr=out)
    try:
        argv = [f"{BIN}/psql", "-X", "-A", "-t", "-h", str(data), "-U", "xstest", "-d", "postgres"]
        argv += ["-c", "select current_user"]
        eventually(lambda: "ready to accept" in log.read_text(), 30, "PostgreSQL is ready")
        refused = guest.run(argv)
        rule = ("--allow", f"unix:{data}/.s.PGSQL.5432")
        assert guest.run(argv, options=rule, check=True).stdout.strip() == "xstest"
        if not guest.native:
            assert "Permission denied" in refused.stderr
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
