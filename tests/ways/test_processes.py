"""Rights that a program outside would give, and what keeps the backend alive."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import guestkit
import xensock
from world.namespaces import eventually

from .conftest import beside, everywhere, guests

if TYPE_CHECKING:
    from world.internet import World
    from world.runner import Guest

STATUS = """
import os
held = [x.split()[1] for x in open("/proc/self/status") if x.startswith("CapEff")]
print(os.geteuid(), int(held[0], 16) >> 13 & 1)
"""
GROUPS = """
import errno, os
for directory, _, files in os.walk("/sys/fs/cgroup"):
    if "cgroup.procs" in files:
        try:
            open(directory + "/cgroup.procs", "r+").close()
        except OSError as error:
            print(errno.errorcode[error.errno])
        else:
            print("done")
        break
"""


@everywhere
@pytest.mark.parametrize("way", ["setuid", "file capabilities"])
def test_files_that_give_rights(guest: Guest, world: World, way: str) -> None:
    """sudo(8) is a setuid program, ping(8) has capabilities on its file: natively each counts, in a guest neither."""
    place = Path("/var/tmp") / f"xensock-ways-{os.getpid()}"
    place.mkdir(mode=0o755)
    try:
        program = place / "python"
        shutil.copy(Path(sys.executable).resolve(), program)
        if way == "setuid":
            program.chmod(0o4755)
        else:
            # VFS_CAP_REVISION_2 with the effective bit: CAP_NET_RAW (capability.h).
            os.setxattr(program, "security.capability", bytes([1, 0, 0, 2, 0, 32] + [0] * 14))
        done = guest.run([str(program), "-I", "-S", "-c", STATUS], timeout=30)
    finally:
        shutil.rmtree(place)
    assert done.returncode == 0, done.stderr
    user, raw = done.stdout.split()
    if not guest.native:
        assert (user, raw) == (str(world.user.uid), "0")
    elif way == "setuid":
        assert user == "0"
    else:
        assert raw == "1"


def test_groups_of_processes_outside_are_not_the_guests_to_stop() -> None:
    """Who may write in the control groups' file system can freeze and kill the backend (cgroups(7))."""
    if guestkit.missing():
        pytest.skip(guestkit.missing())
    argv = [sys.executable, "-c", GROUPS]
    native = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    inside = xensock.run(argv, capture=True, timeout=60).stdout.decode().strip()
    if native != "done":
        pytest.skip("no control group here that this user may write to")
    assert inside in ("EROFS", "EACCES", "EPERM", "")


FIRST = """
import ctypes, errno, json, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
PTRACE, VM_READ = (101, 310) if os.uname().machine == "x86_64" else (117, 270)
def system(*arguments):
    found = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if found < 0:
        raise OSError(ctypes.get_errno(), "")
    return found
def memory(pid):
    open(f"/proc/{pid}/mem", "rb").close()
def read(pid):
    room = ctypes.create_string_buffer(8)
    here = (ctypes.c_uint64 * 2)(ctypes.addressof(room), 8)
    there = (ctypes.c_uint64 * 2)(ctypes.addressof(held), 8)
    system(VM_READ, pid, here, 1, there, 1, 0)
def trace(pid):
    system(PTRACE, 0x4206, pid, 0, 0)
    os.kill(pid, 0)
def take(pid):
    os.close(system(438, system(434, pid, 0), 0, 0))
def look(pid):
    for name in os.listdir(f"/proc/{pid}/fd"):
        os.readlink(f"/proc/{pid}/fd/{name}")
def end(pid):
    os.kill(pid, 9)
    if pid == 1:
        raise OSError(errno.EPERM, "")  # we are still here, so it is, too
held = ctypes.create_string_buffer(8)
child = os.fork()
if not child:
    while True:
        signal.pause()
said = {}
for who, pid in (("first", 1), ("own", child)):
    for call in (memory, read, take, look, trace, end):
        name = call.__name__
        try:
            call(pid)
            said[f"{who} {name}"] = "done"
        except OSError as error:
            said[f"{who} {name}"] = errno.errorcode[error.errno]
print(json.dumps(said))
"""


@guests
@pytest.mark.parametrize("user", ["xstest", None], ids=["ordinary", "root"])
def test_the_guests_first_process_is_not_the_guests(
    guest: Guest, world: World, user: str | None
) -> None:
    """It is ours, the launcher, and holds a way to the backend. A process of the guest's own is the control."""
    done = guest.run([world.python, "-c", FIRST], user=user, timeout=60)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    own = {name for name, word in said.items() if name.startswith("own") and word != "done"}
    assert own == set()
    first = {name: word for name, word in said.items() if name.startswith("first")}
    assert len(first) == 6
    assert set(first.values()) <= {"EPERM", "EACCES", "ENOENT"}, first


@guests
def test_a_run_within_a_run_says_why_it_cannot_be(guest: Guest, world: World) -> None:
    done = guest.run([*guest.xensock, "run", "--", "true"], timeout=60)
    assert done.returncode not in (0, None)
    assert "Traceback" not in done.stderr
    assert "this process already has a supervisor" in done.stderr
    assert "hint: run xensock outside" in done.stderr


@beside
def test_a_port_used_again_does_not_open_the_hosts_loopback(guest: Guest, world: World) -> None:
    """The guest's own listener on a port goes, one of the host's comes: 127.0.0.1 is the guest's all the same."""
    port = guest.port()
    script = f"""
import errno, json, socket, sys
held = socket.create_server(("0.0.0.0", {port}))
first = socket.create_connection(("127.0.0.1", {port}), 5)
print("listening", flush=True)
sys.stdin.readline()
held.close()
first.close()
print("closed", flush=True)
sys.stdin.readline()
try:
    socket.create_connection(("127.0.0.1", {port}), 5)
    print("done")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    read_end, write_end = os.pipe()
    running = guest.popen([world.python, "-c", script], stdin=read_end)
    os.close(read_end)
    try:
        eventually(lambda: "listening" in running.stdout, 20, "the guest listens")
        os.write(write_end, b"\n")
        eventually(lambda: "closed" in running.stdout, 20, "the guest's listener is gone")
        with world.host.listen("127.0.0.1", port):
            os.write(write_end, b"\n")
            assert running.wait(20) == 0, running.stderr
    finally:
        os.close(write_end)
    assert running.stdout.split()[-1] == ("done" if guest.native else "ECONNREFUSED")
