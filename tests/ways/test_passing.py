"""Sockets of the host's network that a guest was passed, as another guest or a program outside could pass them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from semantics.attempts import Service

from .conftest import everywhere

if TYPE_CHECKING:
    from world.internet import World
    from world.runner import Guest

FIRST = 10
GIVER = f"""
import os, socket, sys
for number in range({FIRST}, {FIRST} + 4):
    made = socket.socket()
    os.dup2(made.fileno(), number)
os.execvp(sys.argv[1], sys.argv[1:])
"""
TAKER = f"""
import errno, json, socket, sys
there, port, host, free = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def tried(number, *calls):
    sock = socket.socket(fileno=number)
    sock.settimeout(5)
    for name, *arguments in calls:
        try:
            getattr(sock, name)(*arguments)
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))
    return "done"

print(json.dumps({{
    "connect": tried({FIRST}, ("connect", (there, port))),
    "the host's loopback": tried({FIRST} + 1, ("connect", ("127.0.0.1", host))),
    "bind and listen": tried({FIRST} + 2, ("bind", ("0.0.0.0", free)), ("listen",)),
    "listen": tried({FIRST} + 3, ("listen",)),
}}))
"""


def taken(guest: Guest, world: World, *words: str, options: tuple[str, ...]) -> dict[str, Any]:
    argv = guest.command([world.python, "-c", TAKER, *words], options)
    done = world.host.run([world.python, "-c", GIVER, *argv], user=world.user.name, timeout=60)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@everywhere
def test_a_socket_from_outside_is_judged_by_the_rules_of_its_user(
    guest: Guest, world: World
) -> None:
    peer, host = world.peer, world.host
    with Service(peer.listen(peer.addr4)) as refused, Service(host.listen("127.0.0.1")) as local:
        rules = ("--deny", f"{peer.addr4}:{refused.port}", "--deny", "listen:any")
        words = (peer.addr4, str(refused.port), str(local.port), str(guest.port()))
        seen = taken(guest, world, *words, options=() if guest.native else rules)
        assert bool(refused.clients) == bool(local.clients) == guest.native, seen
    if guest.native:
        assert set(seen.values()) == {"done"}
    else:
        assert seen == {
            "connect": "EACCES",
            "the host's loopback": "ECONNREFUSED",
            "bind and listen": "EACCES",
            "listen": "EACCES",
        }
