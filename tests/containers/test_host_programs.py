"""This machine's own PostgreSQL, Node and curl in containers, whose image is its /usr; and a VPN of the host's."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

import pytest

from world.processes import eventually, needs

if TYPE_CHECKING:
    from engines import Engine

    from world.vpn import Vpn

FOUND = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
BIN = FOUND[-1] if FOUND else ""
USR = ["-v", "/usr:/usr:ro", "-v", "/etc/alternatives:/etc/alternatives:ro"]
NODE = """
const http = require("http");
http.createServer((request, answer) => {
  http.get("http://v4only.test/address", (far) => far.pipe(answer));
}).listen(+process.argv[1], "0.0.0.0");
"""
SERVER = """
{bin}/initdb -D /tmp/pg -A trust -N -U nobody --no-locale -E UTF8 >/dev/null
echo "host all all 0.0.0.0/0 trust" >>/tmp/pg/pg_hba.conf
exec {bin}/postgres -D /tmp/pg -p {port} -k /tmp -c listen_addresses=0.0.0.0 -c fsync=off
"""

pytestmark = pytest.mark.parametrize("engine", ["docker", "podman", "rootless"], indirect=True)
PATHS = pytest.mark.parametrize("datapath", ["direct", "relay"])


@pytest.mark.skipif(not FOUND, reason="needs postgresql: run tools/prepare")
@PATHS
def test_postgresql(engine: Engine, datapath: str) -> None:
    port, label = engine.world.host.free_port(), {"xensock.datapath": datapath}
    script = SERVER.format(bin=BIN, port=port)
    server = [*USR, "--user=65534", "machine", "sh", "-c", script]
    engine.start("base", *server, labels=label)
    where = ["-h", engine.world.host.addr4, "-p", str(port), "-U", "nobody"]

    def client(name: str, *words: str, check: bool = True) -> str:
        argv = [*USR, "--user=65534", "machine", f"{BIN}/{name}", *where, *words]
        done = engine.run(*argv, labels=label, check=check)
        return done.stdout if done.returncode == 0 else ""

    eventually(lambda: "accepting" in client("pg_isready", check=False), 60, "PostgreSQL", 0.5)
    client("pgbench", "-i", "-q", "-n", "postgres")
    said = client("pgbench", "-n", "-C", "-c", "4", "-t", "10", "postgres")
    assert "number of transactions actually processed: 40/40" in said
    assert "number of failed transactions: 0" in said
    last = client(
        "psql", "-X", "-A", "-t", "-c", "select count(*) from pgbench_history", "postgres"
    )
    assert last == "40\n"


@needs("node")
@PATHS
def test_node(engine: Engine, datapath: str) -> None:
    world, port = engine.world, engine.world.host.free_port()
    server = [*USR, "machine", "node", "-e", NODE, str(port)]
    engine.start("node", *server, labels={"xensock.datapath": datapath})
    url = f"http://{world.host.addr4}:{port}/"
    get = ["curl", "-sS", "--max-time", "10", url]
    eventually(lambda: world.peer.run(get).stdout == f"{world.host.addr4}\n", 30, "node")


@PATHS
def test_a_server_behind_the_hosts_vpn(engine: Engine, vpn: Vpn, datapath: str) -> None:
    get = ["curl", "-sS", "--max-time", "10", f"http://{vpn.address}/address"]
    done = engine.run(*USR, "machine", *get, labels={"xensock.datapath": datapath})
    assert done.stdout == f"{vpn.client}\n"
