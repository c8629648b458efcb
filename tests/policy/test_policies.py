"""Policy files over every data path: who reaches what, where connections are sent, who may come in."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from policykit import EMBEDDED, GUESTS, peers, reached, written
from world.namespaces import eventually, needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.internet import World
    from world.runner import Guest

guests = pytest.mark.parametrize("guest", GUESTS, indirect=True)
embedded = pytest.mark.parametrize("guest", EMBEDDED, indirect=True)

RULES = """
[groups]
web = ["web.test", "*.example.test", "198.51.100.11"]

[[rule]]
allow = "web:80"

[[rule]]
deny = "198.51.100.12"
"""


@guests
def test_a_file_says_what_a_guest_may_reach(guest: Guest) -> None:
    found = reached(
        guest,
        "web.test:80",
        "web.test:7",
        "198.51.100.11:80",
        "198.51.100.11:7",
        "intra.example.test:80",  # the name is more than the network, but not than one address
        "198.51.100.12:80",
        "private.test:80",
        "198.51.100.10:80",  # known by its name since the first
        options=written(guest, RULES),
    )
    assert found == ["ok", "EACCES", "ok", "EACCES", "EACCES", "EACCES", "NONAME", "ok"]
    refused = [call for call in guest.calls if call["decision"] == "deny"]
    rules = {(call["rule"], call["source"].rpartition("/")[2]) for call in refused}
    assert ("198.51.100.12", "policy.toml:9") in rules or guest.datapath == "ring"
    assert ("default: not in policy.toml", "") in rules


@embedded
def test_a_refused_call_says_what_explain_says(guest: Guest) -> None:
    """The rule and where it stands, what comes next, and what would allow it."""
    text = """
[[rule]]
allow = "198.51.100.0/24:80"

[[rule]]
deny = "198.51.100.12"

[[rule]]
deny = "198.51.100.8/29:80"
"""
    places = ("198.51.100.12:80", "198.51.100.11:80", "198.51.100.10:7")
    options = written(guest, text)
    assert reached(guest, *places, options=options) == ["EACCES"] * 3
    calls = {call["target"]: call for call in guest.calls}
    traced = calls["198.51.100.12:80"]
    assert traced["source"].endswith("/policy.toml:6")
    assert traced["also"].startswith("deny 198.51.100.8/29:80 (")
    assert "allow 198.51.100.0/24:80 (" in traced["also"]
    for place in places:
        argv = [*guest.xensock, "policy", "explain", "--json", *options, "connect", "tcp", place]
        told = json.loads(guest.world.host.run(argv, cwd=guest.directory).stdout)
        call = calls[place]
        assert (told["rule"], told["source"]) == (call["rule"], call["source"])
        others = ", ".join(
            f"{'allow' if each['allow'] else 'deny'} {each['rule']} ({each['source']})"
            for each in told["others"]
        )
        assert others == call["also"]
        assert call["hint"] == f"--allow {told['smallest']}"


@guests
def test_options_join_a_file(guest: Guest) -> None:
    options = (*written(guest, RULES), "--allow", "web:7", "--deny", "198.51.100.11")
    places = ("web.test:7", "198.51.100.11:80", "198.51.100.11:7")
    assert reached(guest, *places, options=options) == ["ok", "EACCES", "EACCES"]


@guests
def test_listening_by_file(guest: Guest) -> None:
    port, other = guest.port(), guest.port()
    script = """
import errno, socket, sys
for port in sys.argv[1:]:
    with socket.socket() as sock:
        try:
            sock.bind(("0.0.0.0", int(port)))
            sock.listen()
            print("ok")
        except OSError as error:
            print(errno.errorcode[error.errno])
"""
    options = written(guest, f'[[rule]]\nallow = "listen:any:{port}"\n')
    argv = [guest.world.python, "-c", script, str(port), str(other)]
    assert guest.run(argv, options=options).stdout.split() == ["ok", "EACCES"]


@embedded
def test_rules_by_program_and_label(guest: Guest) -> None:
    text = f"""
[[rule]]
allow = "any:80"
program = "{os.path.realpath(shutil.which("curl") or "curl")}"

[[rule]]
allow = "web.test:7"
labels = {{ team = "web" }}
"""
    options = written(guest, text)
    assert reached(guest, "web.test:80", "web.test:7", options=options) == ["EACCES", "EACCES"]
    curl = ["curl", "-sS", "--max-time", "8", "http://web.test/host"]
    assert guest.run(curl, options=options).stdout == "web.test\n"
    # A verdict for one program is none for another.
    both = ["sh", "-c", f'{" ".join(curl)}; exec {guest.world.python} -c "$0" web.test 80']
    from policykit import REACH

    done = guest.run([*both, REACH], options=options)
    assert done.stdout.splitlines() == ["web.test", '["EACCES", ""]'], done.stderr
    labelled = (*options, "--label", "team=web", "--label", "env=ci")
    assert reached(guest, "web.test:7", options=labelled) == ["ok"]
    assert reached(guest, "web.test:7", options=(*options, "--label", "team=db")) == ["EACCES"]


@pytest.fixture
def local(guest: Guest) -> Iterator[tuple[int, str]]:
    """A server of the host: its port on the loopback, and a unix socket that leads to the same."""
    world: World = guest.world
    port, path = world.host.free_port(), guest.directory / "app.sock"
    site = guest.directory / "site"
    site.mkdir()
    (site / "page").write_text("here\n")
    serve = [world.python, "-m", "http.server", "--bind", "127.0.0.1", "-d", str(site), str(port)]
    processes = [
        world.host.popen(serve, user="xstest"),
        world.host.popen(
            ["socat", f"UNIX-LISTEN:{path},fork", f"TCP:127.0.0.1:{port}"], user="xstest"
        ),
    ]
    try:
        eventually(lambda: port in world.host.listening() and path.exists(), 20, "the servers")
        yield port, str(path)
    finally:
        for process in processes:
            process.kill()
            process.wait()


@guests
@needs("socat")
def test_connections_are_sent_elsewhere(guest: Guest, local: tuple[int, str]) -> None:
    port, path = local
    text = f"""
[[rule]]
allow = ["192.0.2.80:80", "web.test:80", "[2001:db8::80]:80"]
redirect = "127.0.0.1:{port}"

[[rule]]
allow = ["192.0.2.81:80", "[2001:db8::81]:80"]
redirect = "unix:{path}"

[[rule]]
allow = "192.0.2.82:80"
redirect = "unix:{path}-absent"

[[rule]]
allow = "192.0.2.83:80"
redirect = "127.0.0.1:1"
"""
    options = written(guest, text)
    hosts = ("192.0.2.80", "web.test", "[2001:db8::80]", "192.0.2.81", "[2001:db8::81]")
    for host in hosts:
        curl = ["curl", "-sS", "--max-time", "8", f"http://{host}/page"]
        done = guest.run(curl, options=options)
        assert (done.stdout, done.stderr) == ("here\n", ""), host
    found = peers(
        guest,
        "192.0.2.80:80",
        "2001:db8::81:80",
        "192.0.2.82:80",
        "192.0.2.83:80",
        "127.0.0.1:" + str(port),
        options=options,
    )
    # The peer is the one that was asked for; the host's loopback itself stays closed.
    assert found == [
        ["ok", "192.0.2.80"],
        ["ok", "2001:db8::81"],
        ["ECONNREFUSED", ""],
        ["ECONNREFUSED", ""],
        ["ECONNREFUSED", ""],
    ]


SERVER = """
import socket, sys
with socket.create_server(("0.0.0.0", int(sys.argv[1]))) as server:
    print("listening", flush=True)
    while True:
        client, address = server.accept()
        client.sendall(address[0].encode())
        client.close()
"""


@guests
def test_clients_are_admitted_by_rule(guest: Guest) -> None:
    world = guest.world
    port = guest.port()
    host = "203.0.113.10"
    text = f"""
[[rule]]
allow = ["listen:any:{port}", "accept:{host}:{port}"]
"""

    def refused() -> bool:
        code = f"""
import socket
try:
    print(socket.create_connection(("{host}", {port}), timeout=8).recv(9))
except ConnectionResetError:
    print("reset")
"""
        done = world.peer.run([world.python, "-c", code])
        assert done.stderr == ""
        return done.stdout == "reset\n"

    argv = [world.python, "-c", SERVER, str(port)]
    with guest.popen(argv, options=written(guest, text), listens=port) as running:
        for _ in range(3):
            assert refused()
            code = f"import socket; print(socket.create_connection(('{host}', {port}), timeout=8).makefile().read())"
            assert world.host.run([world.python, "-c", code]).stdout == f"{host}\n"
        assert running.process.poll() is None
    listening = {call["datapath"] for call in guest.calls if call["verb"] == "listen"}
    assert listening == {"ring" if guest.datapath == "ring" else "relay"}
