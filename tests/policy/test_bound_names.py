"""Rules by name hold for all addresses that the guest's own question brought, whatever way the name leads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from policykit import GUESTS, reached, written
from world.namespaces import eventually

if TYPE_CHECKING:
    from world.runner import Guest

guests = pytest.mark.parametrize("guest", GUESTS, indirect=True)

# Asks for a name with many addresses; begins a connection to each, and to one beside them; prints what that said.
MANY = """
import errno, socket, sys
def begin(address):
    with socket.socket() as sock:
        sock.setblocking(False)
        return errno.errorcode.get(sock.connect_ex((address, 7)))
found = {info[4][0] for info in socket.getaddrinfo("many.test", 7, socket.AF_INET, socket.SOCK_STREAM)}
print(len(found), "EACCES" in {begin(address) for address in found}, begin("198.51.100.160"))
"""

# Holds a connection by name, and makes some more.
HOLD = """
import signal, socket
held = socket.create_connection(("v4only.test", 7), timeout=20)
held.sendall(b"12345")
assert held.recv(5, socket.MSG_WAITALL) == b"12345"
for _ in range(5):
    socket.create_connection(("v4only.test", 7), timeout=20).close()
print("there", flush=True)
signal.pause()
"""


@guests
def test_whatever_way_a_name_leads(guest: Guest) -> None:
    """By an alias, over IPv6, by the search domain, to many addresses; not what else is known of these."""
    text = '[[rule]]\nallow = ["alias.test:7", "v6only.test:7", "intra.example.test:7", "many.test:7"]\n'
    options = written(guest, text)
    places = ["198.51.100.10:7", "alias.test:7", "198.51.100.10:7", "web.test:7", "intra:7"]
    expected = ["EACCES", "ok", "ok", "NONAME", "ok"]
    if guest.world.has_ipv6:
        places.append("v6only.test:7")
        expected.append("ok")
    assert reached(guest, *places, options=options) == expected
    done = guest.run([guest.world.python, "-c", MANY], options=options, check=True, timeout=60)
    assert done.stdout.split() == ["60", "False", "EACCES"]


@guests
def test_an_answer_is_that_guests_who_asked(guest: Guest) -> None:
    """Another guest of the same backend, and of the same user, is not let in by it."""
    options = written(guest, '[[rule]]\nallow = "v4only.test:7"\n')
    address = "198.51.100.11:7"
    with guest.popen([guest.world.python, "-c", HOLD], options=options) as running:
        eventually(lambda: "there" in running.stdout, 30, "the one who asked")
        places = (address, "v4only.test:7", address)
        assert reached(guest, *places, options=options) == ["EACCES", "ok", "ok"]
        assert running.process.poll() is None
    assert len(guest.backends()) == (guest.datapath == "ring")


@guests
def test_the_name_is_in_the_audit_log_and_among_the_sockets(guest: Guest) -> None:
    """Also of calls that the core decided from memory."""
    log = guest.directory / "audit"
    options = (*written(guest, '[[rule]]\nallow = "v4only.test:7"\n'), "--audit", str(log))
    where = "198.51.100.11:7"
    with guest.popen([guest.world.python, "-c", HOLD], options=options) as running:
        eventually(lambda: "there" in running.stdout, 30, "the connections")
        argv = [*guest.xensock, "ss", "--json"]
        told = guest.world.host.run(argv, user="xstest", cwd=guest.directory, check=True).stdout
        found = [one for one in json.loads(told)["sockets"] if one["peer"] == where]
        assert {one["name"] for one in found} == {"v4only.test"}

        def lines(kind: str, verb: str) -> list[dict[str, Any]]:
            read = [json.loads(line) for line in log.read_text().splitlines()]
            return [each for each in read if (each["kind"], each.get("verb")) == (kind, verb)]

        eventually(lambda: len(lines("end", "close")) == 5, 30, "the ends")
        both = lines("call", "connect") + lines("end", "close")
        assert len(both) == 11
        assert {(each["name"], each["target"]) for each in both} == {("v4only.test", where)}
        asked = lines("call", "resolve")
        assert {each["target"] for each in asked} == {"v4only.test"}
