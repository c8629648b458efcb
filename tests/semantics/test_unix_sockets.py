"""Unix sockets of the host: those that lead out are hidden, others open to a rule."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from world.fixtures import only
from world.namespaces import eventually
from world.processes import needs_users

from .attempts import Service, attempt, attempts
from .observing import observe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from world.runner import Guest

    from .conftest import Site


@pytest.fixture
def control_socket(request: pytest.FixtureRequest) -> Iterator[Path]:
    with engine(Path(request.param)) as path:
        yield path


@contextlib.contextmanager
def engine(path: Path) -> Iterator[Path]:
    """A socket of the host where a container engine or the system bus has it; only if absent."""
    if path.exists() or path.is_symlink():
        pytest.skip(f"this machine has a {path}")
    made = [parent for parent in [path.parent, *path.parent.parents] if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.parent.stat().st_mode
    path.parent.chmod(mode | 0o111)  # an engine that is installed may keep it to root
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        yield path
    finally:
        listener.close()
        path.unlink(missing_ok=True)
        path.parent.chmod(mode & 0o7777)
        for directory in made:
            directory.rmdir()


@pytest.mark.parametrize(
    "control_socket",
    [
        *("/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock"),
        *(
            pytest.param(path, marks=pytest.mark.slow)
            for path in (
                *("/run/dbus/system_bus_socket", "/run/systemd/private", "/run/systemd/notify"),
                "/run/systemd/resolve/io.systemd.Resolve",
            )
        ),
    ],
    indirect=True,
)
def test_control_sockets_of_the_host(guest: Guest, site: Site, control_socket: Path) -> None:
    """Natively reached, never from a guest, by whichever name."""
    link = guest.directory / "link"
    link.symlink_to(control_socket)
    names = [
        str(control_socket),
        str(link),
        f"/var{control_socket}",
        f"/proc/self/root{control_socket}",
    ]
    found = attempts(guest, site, *(f"unix {name}" for name in names))
    if guest.native:
        assert found == ["ok"] * len(names)
    else:
        assert set(found) <= {"ENOENT", "ECONNREFUSED", "EACCES", "ENOTDIR", "ENOTSOCK"}


@pytest.mark.parametrize("name", ["/run/balena-engine.sock", "/run/crio/crio.sock"])
@pytest.mark.parametrize("user", ["xstest", "root"])
def test_an_engine_that_starts_while_the_guest_runs(
    guest: Guest, site: Site, name: str, user: str
) -> None:
    """Started, ended, and started anew, whereupon the kernel takes covers away: the guest never gets through."""
    read_end, write_end = os.pipe()
    argv = [*site.probe("attempt.py"), "each"]
    with guest.popen(argv, stdin=read_end, user=user) as running, open(write_end, "w") as words:
        os.close(read_end)

        def ask() -> str:
            before = len(running.stdout.splitlines())
            words.write(f"unix {name}\n")
            words.flush()
            eventually(lambda: len(running.stdout.splitlines()) > before, 20, "an answer")
            return str(json.loads(running.stdout.splitlines()[-1]))

        assert ask() == "ENOENT"
        for _ in range(10):
            with engine(Path(name)):
                assert ask() == ("ok" if guest.native else "EACCES")
            assert ask() == "ENOENT"


def test_what_a_guest_binds_at_such_a_path_is_its_own(guest: Guest) -> None:
    script = """
import os, socket
path = os.environ["XDG_RUNTIME_DIR"] + "/bus"
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
    server.bind(path)
    server.listen()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(path)
            server.accept()[0].close()
    finally:
        os.unlink(path)
print("served")
"""
    done = guest.run([guest.world.python, "-c", script])
    assert done.stdout == "served\n", done.stderr


@dataclass(frozen=True, slots=True)
class Outside:
    path: Path
    listener: socket.socket


@pytest.fixture
def outside(guest: Guest) -> Iterator[Outside]:
    """A socket in the user's own directory, served outside of the guest."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path = guest.directory / "outside"
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(64)
        yield Outside(path, listener)


def test_a_socket_of_the_host_opens_to_its_rule(guest: Guest, site: Site, outside: Outside) -> None:
    path = str(outside.path)
    link = guest.directory / "link"
    link.symlink_to(path)
    names = [
        path,
        str(link),
        f"/proc/self/root{path}",
        f"{guest.directory}/../{guest.directory.name}/outside",
    ]
    attempted = [f"unix {name}" for name in names]
    found = attempts(guest, site, *attempted)
    assert found == ["ok" if guest.native else "EACCES"] * len(names)
    if guest.native:
        return
    refusal = guest.calls[-1]
    assert (refusal["decision"], refusal["hint"]) == ("deny", f"--allow unix:{path}")
    if guest.datapath == "ring":
        return  # the rules are those of another backend
    allowed = attempts(guest, site, *attempted, options=("--allow", f"unix:{path}"))
    assert allowed == ["ok"] * len(names)
    other = attempts(guest, site, *attempted, options=("--allow", f"unix:{path}.other"))
    assert other == ["EACCES"] * len(names)
    rules = ("--allow", f"unix:{path}", "--deny", f"unix:{path}")
    assert attempt(guest, site, "unix", path, options=rules) == "EACCES"


@pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
def test_a_path_that_is_no_text(guest: Guest, site: Site) -> None:
    """Bytes that are not UTF-8: refused, as no rule can name them; whoever writes one learns so."""
    path = os.fsencode(guest.directory) + b"/\xff\xfe"
    script = (
        "import socket, sys, os\nwith socket.socket(socket.AF_UNIX) as sock:\n"
        "    print(sock.connect_ex(os.fsencode(sys.argv[1])))"
    )
    argv = [site.world.python, "-c", script, os.fsdecode(path)]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o666)
        listener.listen(8)
        refused = guest.run(argv, check=True).stdout
        assert refused == ("0\n" if guest.native else f"{errno.EACCES}\n")
        if guest.native:
            return
        assert guest.calls[-1]["decision"] == "deny"
        assert "--allow" not in guest.calls[-1]["hint"]
        allowed = guest.run(argv, options=("--allow", f"unix:{os.fsdecode(path)}"))
        assert allowed.returncode == 125
        assert (
            "the path is not printable text\nhint: bind the socket under another" in allowed.stderr
        )


@pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
def test_whom_the_host_sees(guest: Guest, site: Site, outside: Outside) -> None:
    """By SO_PEERCRED: the guest's user, and the process of its backend."""
    options = ("--allow", f"unix:{outside.path}")
    assert attempt(guest, site, "unix", str(outside.path), options=options) == "ok"
    conn, _ = outside.listener.accept()
    with conn:
        peer = conn.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = struct.unpack("=iII", peer)
    assert pid > 0
    assert (uid, gid) == (site.world.user.seen, site.world.user.seen)


@pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
def test_a_path_changed_while_it_is_judged(
    guest: Guest, compiled: Callable[..., Path], outside: Outside
) -> None:
    """Thousands of calls, and a thread that rewrites the path all the time: the host's socket is never reached."""
    own = outside.path.with_name("guests!")
    assert len(str(own)) == len(str(outside.path))
    with Service(outside.listener) as service:
        argv = [str(compiled("flip_unix")), str(own), str(outside.path), "2000"]
        seen = dict(observe(guest, argv))
    by_rule = "0" if guest.native else "1"
    assert seen == {"connected": "1", "refused": by_rule, "other outcomes": "0"}
    assert bool(service.clients) == guest.native


@needs_users()
@pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
def test_permissions_are_those_of_the_caller(guest: Guest, site: Site) -> None:
    """Root's guest with another user's process: to a socket of root's alone it has no way."""
    script = guest.directory / "drop.py"
    script.write_text(DROP)
    done = guest.run([site.world.python, str(script)], user="root", check=True)
    assert json.loads(done.stdout) == ["EACCES", "ok", [54321, 54321]]


DROP = """
import errno, json, os, socket, struct
sock = socket.socket(socket.AF_UNIX)
sock.bind("mine")
sock.listen()
said = []
def ask():
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(54321)
        os.setuid(54321)
        with socket.socket(socket.AF_UNIX) as near:
            os._exit(near.connect_ex("mine"))
    number = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said.append(errno.errorcode.get(number, "ok"))
os.chmod("mine", 0o600)
ask()
os.chmod("mine", 0o666)
ask()
far, _ = sock.accept()
said.append(list(struct.unpack("=iII", far.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))[1:])
print(json.dumps(said))
"""


@pytest.mark.parametrize("guest", only("native", "direct", "relay"), indirect=True)
def test_datagrams_to_a_socket_of_the_host(guest: Guest, site: Site) -> None:
    """By sendto, which nobody judges: those that were there first are hidden. By connect to a rule."""
    path = guest.directory / "log"

    def bind() -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made.bind(str(path))
        return made

    with site.world.host.inside(bind) as there:
        there.setblocking(False)
        path.chmod(0o666)
        script = guest.directory / "send.py"
        script.write_text(SEND)
        argv = [site.world.python, str(script), str(path)]
        found = json.loads(guest.run(argv, check=True).stdout)
        assert found == ([3, "ok"] if guest.native else ["ECONNREFUSED", "ECONNREFUSED"])
        rule = ("--allow", f"unix:{path}")
        assert json.loads(guest.run(argv, options=rule, check=True).stdout)[1] == "ok"
        got = [there.recv(9)]
        while len(got) < (4 if guest.native else 1):
            got.append(there.recv(9))
        assert got[-1] == b"two"
        with pytest.raises(BlockingIOError):
            there.recv(9)


SEND = """
import errno, json, socket, sys
def outcome(call, *arguments):
    try:
        return call(*arguments) or "ok"
    except OSError as failure:
        return errno.errorcode[failure.errno]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    said = [outcome(sock.sendto, b"one", sys.argv[1]), outcome(sock.connect, sys.argv[1])]
    if said[1] == "ok":
        sock.send(b"two")
print(json.dumps(said))
"""


def test_abstract_sockets_of_the_host(guest: Guest, site: Site) -> None:
    """They belong to a network namespace, so a guest has its own."""

    def bind() -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        made.bind("\0xensock-test-abstract")
        made.listen()
        return made

    with site.world.host.inside(bind):
        found = attempt(guest, site, "unix", "@xensock-test-abstract")
    assert found == ("ok" if guest.native else "ECONNREFUSED")
