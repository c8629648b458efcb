"""Sockets of the host's network that a guest was passed, as another guest or a program outside could pass them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from semantics.attempts import Service
from world.namespaces import eventually

from .conftest import between, everywhere

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


HANDING = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    with listener.accept()[0] as taker:
        made = [socket.socket() for _ in range(4)]
        socket.send_fds(taker, [b"x"], [each.fileno() for each in made])
        taker.recv(1)
"""
TAKING = f"""
import os, socket, sys
giver = socket.socket(socket.AF_UNIX)
giver.connect(sys.argv.pop(1))
for number, fd in enumerate(socket.recv_fds(giver, 1, 4)[1]):
    os.dup2(fd, {FIRST} + number)
"""


@between
def test_a_socket_of_another_guest_is_judged_by_the_rules_of_its_user(
    guest: Guest, world: World
) -> None:
    """By SCM_RIGHTS, over a unix socket that the stricter one's rules name."""
    peer, host = world.peer, world.host
    path = guest.directory / "handing"
    with (
        Service(peer.listen(peer.addr4)) as refused,
        Service(host.listen("127.0.0.1")) as local,
        guest.popen([world.python, "-c", HANDING, str(path)]),
    ):
        eventually(path.exists, 20, "the giver's socket")
        rules = ("--deny", f"{peer.addr4}:{refused.port}", "--deny", "listen:any")
        rules += ("--allow", "any/tcp", "--allow", f"unix:{path}")
        words = (peer.addr4, str(refused.port), str(local.port), str(guest.port()))
        argv = [world.python, "-c", TAKING + TAKER, str(path), *words]
        done = guest.run(argv, options=rules, timeout=60)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout.splitlines()[-1])
        assert bool(refused.clients) == bool(local.clients) == guest.native, seen
    assert (set(seen.values()) == {"done"}) == guest.native, seen
    assert guest.native or "done" not in seen.values(), seen


RING = f"""
import ctypes, os, sys
ring = ctypes.CDLL(None, use_errno=True).syscall(425, 8, ctypes.create_string_buffer(120))
assert ring >= 0, os.strerror(ctypes.get_errno())
os.dup2(ring, {FIRST})
os.execvp(sys.argv[1], sys.argv[1:])
"""
WHAT = f"""
import os
try:
    print(os.readlink("/proc/self/fd/{FIRST}"))
except FileNotFoundError:
    print("nothing")
"""


@everywhere
def test_a_ring_from_outside_does_not_come_in(guest: Guest, world: World) -> None:
    """A kernel thread makes its calls, with the rights of whoever made it (io_uring_setup(2), SQPOLL)."""
    argv = guest.command([world.python, "-c", WHAT], ())
    done = world.host.run([world.python, "-c", RING, *argv], user=world.user.name, timeout=60)
    if "Operation not permitted" in done.stderr:
        pytest.skip("kernel.io_uring_disabled: no ring can be made")
    assert done.stdout == ("anon_inode:[io_uring]\n" if guest.native else "nothing\n"), done.stderr
