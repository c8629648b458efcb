"""Datagrams and pings that rules send by other networks: `via` holds for them as for connections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policykit import EXCHANGE, NO_WAY, PORT, SERVER, Office, hanging, written
from world.fixtures import only
from world.namespaces import eventually

if TYPE_CHECKING:
    from world.runner import Guest

embedded = pytest.mark.parametrize("guest", only("direct"), indirect=True)


def exchanged(
    guest: Guest, options: tuple[str, ...], *places: str, user: str | None = None
) -> list[str]:
    """What came of the two ways to send to each HOST:PORT."""
    words = [word for place in places for word in place.rsplit(":", 1)]
    argv = [guest.world.python, "-c", EXCHANGE, *words]
    return guest.run(argv, options=options, user=user, check=True, timeout=60).stdout.splitlines()


@embedded
def test_datagrams_by_another_namespace(guest: Guest, office: Office) -> None:
    """One socket talks to servers of two networks; the name resolves where its rule says; nothing goes elsewhere."""
    web = guest.world.web4
    text = f"""
[networks]
away = {{ netns = "/run/netns/xensock-no-such" }}
{office.toml()}

[[rule]]
allow = "*.office.test:{PORT}"
via = ["away", "office"]

[[rule]]
allow = "{web}:7"

[[rule]]
allow = "198.51.100.12:7/udp"
via = "office"

[[rule]]
allow = "198.51.100.11:7"
via = "away"
"""
    places = (f"srv.office.test:{PORT}", f"{web}:7", "198.51.100.12:7", "198.51.100.11:7")
    found = exchanged(guest, written(guest, text), *places)
    assert found[:2] == [f"bound from {SERVER}:{PORT}", f"loose0 from {SERVER}:{PORT}"]
    assert found[2:4] == [f"bound from {web}:7", f"loose1 from {web}:7"]
    assert found[4:] == ["101"] * 2  # the office has no way there, and nobody else is asked
    hints = {c["target"]: c["hint"] for c in guest.calls if c["verb"] == "connect"}
    loose = {c["target"]: c["hint"] for c in guest.calls if c["verb"] == "send"}
    for host in ("198.51.100.12", "198.51.100.11"):
        assert (hints[f"{host}:7/udp"], loose[f"{host}:7/udp"]) == (NO_WAY, NO_WAY)
    rules = {c["target"]: (c["rule"], c["datapath"]) for c in guest.calls if not c["error"]}
    assert rules[f"{SERVER}:{PORT}/udp"] == (f"*.office.test:{PORT} via office", "relay")
    assert rules[f"{web}:7/udp"] == (f"{web}:7", "relay")


@embedded
@pytest.mark.slow
def test_datagrams_by_another_backend(guest: Guest) -> None:
    """Its own rules hold for them, too."""
    url = guest.backend(("--allow", "web.test:7"), "xstest")
    text = f"""
[networks]
lab = {{ backend = "{url}" }}

[[rule]]
allow = ["web.test:7", "web.test:9"]
via = "lab"

[[rule]]
allow = "intra.example.test:7"
"""
    web, intra = guest.world.web4, "198.51.100.12"
    places = ("web.test:7", "intra.example.test:7", "web.test:9")
    found = exchanged(guest, written(guest, text), *places, user="xstest")
    assert found[:2] == [f"bound from {web}:7", f"loose0 from {web}:7"]
    assert found[2:4] == [f"bound from {intra}:7", f"loose1 from {intra}:7"]
    assert found[4:] == ["13"]
    rules = {c["target"]: (c["rule"], c["datapath"]) for c in guest.calls if not c["error"]}
    assert rules[f"{web}:7/udp"] == ("web.test:7 via lab", "ring")
    assert rules[f"{intra}:7/udp"] == ("intra.example.test:7", "relay")


@embedded
@pytest.mark.slow
def test_pings_by_another_namespace(guest: Guest, office: Office) -> None:
    text = f"""
[networks]
{office.toml()}

[[rule]]
allow = "{SERVER}"
via = "office"
"""
    argv = ["ping", "-n", "-c", "1", "-W", "10", SERVER]
    done = guest.run(argv, options=written(guest, text), user=None, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"from {SERVER}" in done.stdout


@pytest.mark.parametrize("guest", only("ring"), indirect=True)
def test_datagrams_of_a_backends_guests(guest: Guest, office: Office) -> None:
    """Namespaces and another backend carry them, by its own rules, and the host never carries them instead."""
    web, intra, other = guest.world.web4, "198.51.100.12", "198.51.100.11"
    url = guest.backend(("--allow", f"{other}:7", "--allow", f"{other}:81"), "xstest")
    text = f"""
[networks]
lab = {{ backend = "{url}" }}
shut = {{ backend = "local:{guest.directory}/nobody" }}
{office.toml()}

[[rule]]
allow = "{SERVER}:{PORT}"
via = ["shut", "office"]

[[rule]]
allow = "{web}:7"
via = ["office", "host"]

[[rule]]
allow = ["{other}:7", "{other}:9", "{other}:81"]
via = ["lab", "host"]

[[rule]]
allow = "{intra}:7"
via = "office"

[[rule]]
allow = "{web}:81"
via = "shut"
"""
    options = written(guest, text)
    carried = (f"{SERVER}:{PORT}", f"{web}:7", f"{other}:7", f"{other}:81")
    found = exchanged(guest, options, *carried, f"{other}:9", f"{intra}:7", f"{web}:81")
    assert found[:2] == [f"bound from {SERVER}:{PORT}", f"loose0 from {SERVER}:{PORT}"]
    assert found[2:4] == [f"bound from {web}:7", f"loose1 from {web}:7"]
    assert found[4:6] == [f"bound from {other}:7", f"loose2 from {other}:7"]
    assert found[6:] == ["111", "13", "101", "101"]
    rules = {call["target"]: call["rule"] for call in guest.calls}
    assert rules[f"{SERVER}:{PORT}/udp"] == f"{SERVER}:{PORT} via office"
    assert rules[f"{web}:7/udp"] == f"{web}:7 via host"
    assert rules[f"{other}:7/udp"] == f"{other}:7 via lab"
    hints = {call["target"]: call["hint"] for call in guest.calls}
    assert f"--allow {other}:9/udp" in hints[f"{other}:9/udp"]  # the other backend's word
    assert "no network of its via carries datagrams" in rules[f"{web}:81/udp"]
    assert (hints[f"{web}:81/udp"], hints[f"{intra}:7/udp"]) == (NO_WAY, NO_WAY)


# Three sockets send to one server, others to its other ports, and a thread connects one; ever anew sockets send to
# another server. The first three are answered once that one's network is.
BESIDE = """
import socket, sys, threading
def made():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(60)
    return sock
def asked(sock, host):
    sock.sendto(b"hello", (host, 7))
held = [made() for _ in range(3)]
asked(held[0], sys.argv[1])
print("warm", held[0].recv(9).decode(), flush=True)
sys.stdin.readline()
for sock in held:
    asked(sock, sys.argv[1])
with made() as sock:
    for port in range(8, 13):
        sock.sendto(b"hello", (sys.argv[1], port))
def call():
    held[2].connect((sys.argv[1], 7))
    print("taken", flush=True)
calling = threading.Thread(target=call)
calling.start()
for _ in range(3):
    with made() as sock:
        asked(sock, sys.argv[2])
        print("beside", sock.recv(9).decode(), flush=True)
with made() as sock:
    sock.connect((sys.argv[2], 7))
    sock.send(b"hello")
    print("beside", sock.recv(9).decode(), flush=True)
asked(held[0], sys.argv[2])  # the same socket, another server
print("beside", held[0].recv(9).decode(), flush=True)
sys.stdin.readline()
calling.join()
for sock in held:
    print("late", sock.recv(9).decode(), flush=True)
"""


@pytest.mark.parametrize("guest", only("direct", "ring"), indirect=True)
def test_datagrams_pass_a_backend_that_hangs(guest: Guest) -> None:
    """What goes to its servers waits or is lost, and nothing else is held up; it goes on when that backend does. That
    backend is one of the run's own networks, or of those behind its backend."""
    with hanging(guest, BESIDE) as (running, go, resume):
        go()
        eventually(lambda: running.stdout.count("beside hello") == 5, 20, "the others")
        assert "taken" not in running.stdout
        resume()
        go()
        assert running.wait() == 0, running.stderr
        assert running.stdout.count("late hello") == 3
