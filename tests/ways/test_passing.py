"""Sockets of the host's network that a guest was passed, as another guest or a program outside could pass them."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from guestkit import no_user_namespaces
from semantics.attempts import Service
from world.namespaces import eventually, stop

from .conftest import between, everywhere, outcome

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


RELAYED = """
import errno, json, os, socket, sys
there, port = sys.argv[1], int(sys.argv[2])

def reached(path):
    try:
        with socket.create_connection(path, 10) as sock:
            return sock.recv(10).decode() or "nothing"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))

listener = socket.create_server(("127.0.0.1", 0))
if not os.fork():
    client, _ = listener.accept()
    client.sendall(reached((there, port)).encode())
    os._exit(0)
print(json.dumps({"itself": reached((there, port)), "relayed": reached(listener.getsockname())}))
"""


@everywhere
def test_a_relay_within_the_guest_opens_nothing(guest: Guest, world: World) -> None:
    """A process of its own that connects for it is judged as it is."""
    peer = world.peer
    with Service(peer.listen(peer.addr4)) as refused:
        rules = ("--deny", f"{peer.addr4}:{refused.port}")
        argv = [world.python, "-c", RELAYED, peer.addr4, str(refused.port)]
        seen = outcome(guest, argv, options=rules)
        assert bool(refused.clients) == guest.native
    assert set(seen.values()) == {"service" if guest.native else "EACCES"}


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


SENDING = """
import ctypes, errno, os, socket, sys
ring = ctypes.CDLL(None, use_errno=True).syscall(425, 8, ctypes.create_string_buffer(120))
if ring < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    with listener.accept()[0] as taker:
        try:
            socket.send_fds(taker, [b"sent"], [ring])
        except OSError as error:
            taker.sendall(errno.errorcode[error.errno].encode())
"""
RECEIVING = """
import ctypes, errno, json, os, socket, sys
giver = socket.socket(socket.AF_UNIX)
giver.connect(sys.argv[1])
word, rings, _, _ = socket.recv_fds(giver, 10, 1)

def called(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    return "done" if libc.syscall(number, *arguments) >= 0 else errno.errorcode[ctypes.get_errno()]

number = rings[0] if rings else -1
print(json.dumps({
    "word": word.decode(),
    "rings": len(rings),
    "io_uring_enter": called(426, number, 0, 0, 0, None, 0),
    "io_uring_register": called(427, number, 0, None, 0),
}))
"""


@between
def test_a_ring_that_a_program_outside_sends(guest: Guest, world: World) -> None:
    """Since Linux 6.7 none can be sent. Where one can, a guest that has it may not call with it: what is left is a
    kernel thread's (SQPOLL), with the rights of who made the ring."""
    path = guest.directory / "sending"
    argv = [world.python, "-c", SENDING, str(path)]
    with world.host.popen(argv, user=world.user.name, stderr=subprocess.PIPE, text=True) as giver:
        try:
            eventually(lambda: path.exists() or giver.poll() is not None, 20, "the giver's socket")
            if giver.poll() is not None:
                assert giver.stderr is not None
                pytest.skip(f"no ring can be made: {giver.stderr.read().strip()}")
            rules = ("--allow", f"unix:{path}")
            done = guest.run([world.python, "-c", RECEIVING, str(path)], options=rules)
        finally:
            stop(giver)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen.pop("word"), seen.pop("rings")) in (("EINVAL", 0), ("sent", 1))
    if guest.native:
        assert "ENOSYS" not in seen.values()
    else:
        assert set(seen.values()) == {"ENOSYS"}


NETWORK = f"""
import os, sys
os.dup2(os.open("/proc/self/ns/net", os.O_RDONLY), {FIRST})
os.execvp(sys.argv[1], sys.argv[1:])
"""
ENTERING = f"""
import ctypes, errno, os
there = os.readlink("/proc/self/fd/{FIRST}")
libc = ctypes.CDLL(None, use_errno=True)
entered = not libc.setns({FIRST}, 0x40000000)
print("done" if entered else errno.errorcode[ctypes.get_errno()], there, os.readlink("/proc/self/ns/net") == there)
"""


@everywhere
@pytest.mark.parametrize("user", ["xstest", None], ids=["ordinary", "root"])
@pytest.mark.parametrize("within", ["", "unshare --map-root-user --user"], ids=["", "namespace"])
def test_the_hosts_network_as_a_descriptor_cannot_be_entered(
    guest: Guest, world: World, user: str | None, within: str
) -> None:
    """Inherited, it comes in as any file does. To enter it takes rights over it (setns(2)), which natively root has."""
    if within and (reason := no_user_namespaces()):
        pytest.skip(reason)
    argv = guest.command([*within.split(), world.python, "-c", ENTERING], (), user)
    done = world.host.run([world.python, "-c", NETWORK, *argv], user=user, timeout=60)
    assert done.returncode == 0, done.stderr
    word, name, is_there = done.stdout.split()
    assert name == world.host.identity
    allowed = guest.native and user is None and not within
    assert (word == "done") == allowed
    assert word in ("done", "EPERM")
    # Natively one is there from the start.
    assert (is_there == "True") == guest.native
