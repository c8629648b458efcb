"""Datagrams to a host's unix socket that is bound while the guest runs: by choice it has no socket to send them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from world.namespaces import stop

from .conftest import between, everywhere

if TYPE_CHECKING:
    from world.internet import World
    from world.runner import Guest

REFUSE = ("--unix-datagrams", "refuse")
GIVEN = 10
GIVER = f"""
import os, socket, sys
made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
os.dup2(made.fileno(), {GIVEN})
os.execvp(sys.argv[1], sys.argv[1:])
"""
SENDER = f"""
import errno, json, socket, sys
from socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_NONBLOCK, SOCK_RAW
path = sys.argv[1]
print("begun", flush=True)
sys.stdin.readline()

def made(kind):
    return socket.socket(AF_UNIX, kind)

def paired(kind):
    return socket.socketpair(AF_UNIX, kind)[0]

def outcome(name, make, *arguments):
    try:
        with make(*arguments) as sock:
            if name == "sendmsg":
                sock.sendmsg([name.encode()], (), 0, path)
            else:
                sock.sendto(name.encode(), path)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

print(json.dumps({{name: outcome(name, *how) for name, *how in (
    ("sendto", made, SOCK_DGRAM),
    ("sendmsg", made, SOCK_DGRAM),
    ("of a kind with flags", made, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK),
    ("raw", made, SOCK_RAW),
    ("of a pair", paired, SOCK_DGRAM),
    ("of a raw pair", paired, SOCK_RAW),
    ("inherited", lambda: socket.socket(fileno={GIVEN})),
)}}))
"""


def sent(
    guest: Guest, world: World, user: str | None, *options: str
) -> tuple[dict[str, str], set[str]]:
    """What came of each way to send, and what arrived at a socket that was bound when the guest ran."""
    path = guest.directory / "late"
    argv = guest.command([world.python, "-c", SENDER, str(path)], options, user)
    with world.host.popen(
        [world.python, "-c", GIVER, *argv],
        user=user,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
                there.bind(str(path))
                path.chmod(0o666)
                told = process.communicate("go on\n", timeout=60)[0]
                there.setblocking(False)
                arrived = set()
                while True:
                    try:
                        arrived.add(there.recv(100).decode())
                    except BlockingIOError:
                        break
        finally:
            stop(process)
            path.unlink(missing_ok=True)
    assert process.returncode == 0
    return json.loads(told), arrived


def refused(found: dict[str, str]) -> bool:
    return found == {name: "ESOCKTNOSUPPORT" for name in found} | {"inherited": "EBADF"}


@everywhere
@pytest.mark.parametrize("user", ["xstest", None], ids=["ordinary", "root"])
def test_a_socket_that_is_bound_while_the_guest_runs(
    guest: Guest, world: World, user: str | None
) -> None:
    """By default nobody stops it, as natively: this shows that each way leads there."""
    found, arrived = sent(guest, world, user)
    assert set(found.values()) == {"done"}
    assert arrived == set(found)
    if guest.native:
        return
    found, arrived = sent(guest, world, user, *REFUSE)
    assert refused(found), found
    assert arrived == set()


@between
def test_a_policy_file_says_so_and_an_option_wins(guest: Guest, world: World) -> None:
    file = guest.directory / "policy.toml"
    file.write_text('unix_datagrams = "refuse"\n')
    policy = () if guest.native else ("--policy", str(file))
    found, arrived = sent(guest, world, world.user.name, *policy)
    assert (set(found.values()) == {"done"}) == guest.native
    assert bool(arrived) == guest.native
    if not guest.native:
        assert refused(found), found
        option = ("--unix-datagrams", "allow")
        found, arrived = sent(guest, world, world.user.name, *policy, *option)
        assert set(found.values()) == {"done"}
        assert arrived == set(found)


STANDARD = """
import os, socket, sys
made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
os.dup2(made.fileno(), 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
WHAT = "import os; print(os.readlink('/proc/self/fd/0').partition(':')[0])"


@everywhere
def test_one_that_is_standard_input(guest: Guest, world: World) -> None:
    """A number below 3 that is free would be taken by the next file that the program opens."""
    argv = guest.command([world.python, "-c", WHAT], () if guest.native else REFUSE)
    done = world.host.run([world.python, "-c", STANDARD, *argv], user=world.user.name, timeout=60)
    assert done.stdout == ("socket\n" if guest.native else "/dev/null\n"), done.stderr


GOING_ON = """
import asyncio, logging.handlers, socket, syslog
syslog.syslog("unheard")
logging.handlers.SysLogHandler("/dev/log").close()
for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    one, other = socket.socketpair(socket.AF_UNIX, kind)
    one.send(b"x")
    assert other.recv(9) == b"x"
    socket.socket(socket.AF_UNIX, kind).close()
asyncio.run(asyncio.sleep(0))
print("went on")
"""


@everywhere
def test_who_logs_goes_on_and_other_sockets_are_there(guest: Guest, world: World) -> None:
    options = () if guest.native else REFUSE
    done = guest.run([world.python, "-c", GOING_ON], options=options, check=True)
    assert done.stdout == "went on\n"


@between
@pytest.mark.parametrize("options", [(), REFUSE], ids=["allowed", "refused"])
def test_output_ends_with_the_program_whatever_goes_on_behind(
    guest: Guest, options: tuple[str, ...]
) -> None:
    """Of what is inherited nothing stays open here but for whom it is: `$(…)` waits for that."""
    waits = guest.directory / "waits"
    os.mkfifo(waits)
    waits.chmod(0o666)
    behind = ["sh", "-c", f"exec 3<{waits}; echo said; cat <&3 >/dev/null 2>&1 &"]
    with waits.open("r+b", buffering=0):
        done = guest.run(behind, options=() if guest.native else options, timeout=60)
        assert done.stdout == "said\n"
