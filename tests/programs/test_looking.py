"""`xensock ps`, `ss`, `status`, `events` and `kill`: on runs and on a daemon, with guests that try to deceive."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import guestkit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 60
HOSTILE = "evil\x1b]0;gotcha\x07\x9b31m\nname"
paths = pytest.mark.parametrize("path", guestkit.paths())

TALKER = """
import ctypes, errno, socket, sys, time
ctypes.CDLL(None).prctl(15, b"co\\x1b[5mm")  # PR_SET_NAME
listener = socket.create_server(("", 0))
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.sendall(b"12345")
print("there", flush=True)
try:
    print(repr(sock.recv(100)), flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own, so that it sees its own guests only."""
    path = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def far() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        yield server


def command(*options: str) -> list[str]:
    return [sys.executable, "-P", "-m", "xensock", *options]


def said(*options: str, status: int = 0) -> str:
    done = subprocess.run(command(*options), timeout=PATIENCE, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout if not status else done.stderr


def rows(verb: str, key: str, *options: str) -> list[dict[str, Any]]:
    told = json.loads(said(verb, "--json", *options))
    assert told["schema"] == 1
    found: list[dict[str, Any]] = told[key]
    return found


def until(check: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@dataclass
class Running:
    process: subprocess.Popen[str]
    client: socket.socket

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")


@contextlib.contextmanager
def talking(far: socket.socket, *options: str) -> Iterator[Running]:
    """A guest that holds a connection to `far` and a listener, until it is ended."""
    argv = ["run", "--name", HOSTILE, *options, "--", sys.executable, "-c", TALKER]
    with subprocess.Popen(
        [*command(*argv), str(far.getsockname()[1])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            client, _ = far.accept()
            with client:
                running = Running(process, client)
                assert running.line() == "there"
                assert client.recv(5, socket.MSG_WAITALL) == b"12345"
                yield running
        finally:
            process.kill()


@contextlib.contextmanager
def serving(tmp_path: Path, *rules: str) -> Iterator[tuple[int, Path, Path]]:
    """A daemon's process, the socket that guests come to, and its control socket."""
    where, control = tmp_path / "s", tmp_path / "c"
    options = ["--listen", f"local:{where}", "--control", str(control), "--allow", "loopback"]
    with subprocess.Popen(
        command("backend", *options, *rules), stderr=subprocess.PIPE, text=True
    ) as daemon:
        try:
            assert daemon.stderr is not None
            assert "listening" in daemon.stderr.readline()
            yield daemon.pid, where, control
        finally:
            daemon.terminate()
            daemon.communicate(timeout=PATIENCE)


@paths
def test_a_run_and_its_sockets(runtime: Path, far: socket.socket, path: str) -> None:
    with talking(
        far, "--datapath", path, "--allow", "loopback", "--allow", "listen:any"
    ) as running:
        (guest,) = until(lambda: rows("ps", "guests"))
        assert guest["name"] == HOSTILE
        assert guest["uid"] == os.geteuid()
        assert guest["processes"] >= 1
        found = {one["state"]: one for one in rows("ss", "sockets")}
        assert set(found) == {"listening", "established"}
        talk = found["established"]
        assert talk["peer"] == f"127.0.0.1:{far.getsockname()[1]}"
        assert (talk["sent"], talk["received"]) == (5, 0)
        assert talk["datapath"] in (path, "guest")
        assert talk["program"] == "co\x1b[5mm"
        assert (talk["rtt"] is not None) is (path == "direct")
        assert rows("ss", "sockets", guest["guest"]) == rows("ss", "sockets")
        for verb in ("ps", "ss", "status"):
            shown = said(verb)
            assert shown.replace("\n", "").isprintable(), repr(shown)
        assert "evil\\x1b]0;gotcha\\x07\\x9b31m\\nname" in said("ps")
        assert "co\\x1b[5mm" in said("ss")
        assert "1 established" in said("status")
        assert said("ps", "-q") == f"{guest['guest']}\n"
        for verb, wanted in (
            ("ps", [guest["guest"]]),
            ("ss", [o["connection"] for o in found.values()]),
        ):
            plain = [line.split("\t") for line in said(verb, "--plain").splitlines()]
            assert {row[0] for row in plain} == set(wanted)
            heads = said(verb).splitlines()[0].split()
            assert {len(row) for row in plain} == {len(heads)}
        assert set(said("ss", "-q").split()) == {one["connection"] for one in found.values()}
        told = json.loads(said("kill", "--json", talk["connection"]))
        assert told == {"schema": 1, "killed": talk["connection"]}
        assert running.line() in ("ECONNRESET", "EPIPE")
        with pytest.raises(ConnectionResetError):
            assert running.client.recv(1) == b"?"
        refused = said("kill", talk["connection"], status=1)
        assert "the guest has no socket" in refused
        said("kill", guest["guest"])
        running.process.wait(PATIENCE)
    assert until(lambda: not rows("ps", "guests"))
    assert not list((runtime / "xensock").glob("run-*"))


DATAGRAMS = """
import ctypes, errno, select, socket, sys
ctypes.CDLL(None).prctl(15, b"co\\x1b[5mm")  # PR_SET_NAME
kind = socket.SOCK_DGRAM
talk, bound = socket.socket(type=kind), socket.socket(type=kind)
own = socket.socket(type=kind)
own.bind(("127.0.0.1", 0))
talk.connect(own.getsockname())
bound.bind(("0.0.0.0", 0))
print(own.getsockname()[1], talk.getsockname()[1], bound.getsockname()[1], flush=True)
print(talk.recv(10), flush=True)
try:
    talk.sendto(b"x", own.getsockname())
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
print(bound.recv(10), flush=True)
own.sendto(b"self", own.getsockname())
print(own.recv(10), flush=True)
sys.stdin.read()
"""


@paths
def test_sockets_of_udp(runtime: Path, path: str) -> None:
    """They are seen, and one of them is ended; the others do not notice."""
    options = ["run", "--name", HOSTILE, "--datapath", path, "--allow", "listen:any", "--"]
    with subprocess.Popen(
        [*command(*options), sys.executable, "-c", DATAGRAMS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as guest:
        assert guest.stdout is not None
        try:
            own, talk, bound = map(int, guest.stdout.readline().split())
            found = {int(one["local"].rpartition(":")[2]): one for one in rows("ss", "sockets")}
            assert set(found) == {own, talk, bound}
            for one in found.values():
                assert (one["protocol"], one["state"]) == ("udp", "datagrams")
                assert (one["sent"], one["received"], one["rtt"]) == (None, None, None)
                assert one["program"] == "co\x1b[5mm"
            assert found[talk]["peer"] == f"127.0.0.1:{own}"
            assert (found[talk]["name"], found[talk]["datapath"]) == ("localhost", "guest")
            assert (found[bound]["local"], found[bound]["peer"]) == (f"0.0.0.0:{bound}", None)
            assert_plain(said("ss"), "co\\x1b[5mm", "udp", "datagrams")
            said("kill", found[talk]["connection"])
            assert [guest.stdout.readline() for _ in range(2)] == ["b''\n", "EPIPE\n"]
            assert talk not in {int(o["local"].rpartition(":")[2]) for o in rows("ss", "sockets")}
            said("kill", found[bound]["connection"])
            assert guest.stdout.readline() == "b''\n"
            assert guest.stdout.readline() == "b'self'\n"
        finally:
            guest.kill()


@paths
def test_events(runtime: Path, far: socket.socket, path: str) -> None:
    """Recording begins when somebody looks, and a verdict of the core's is among what is seen."""
    script = (
        "import socket, sys, time\n"
        "for line in sys.stdin: socket.create_connection(('127.0.0.1', int(sys.argv[1]))).close()"
    )
    port = str(far.getsockname()[1])
    options = ["run", "--name", HOSTILE, "--datapath", path, "--allow", "loopback", "--"]
    with (
        subprocess.Popen(
            [*command(*options), sys.executable, "-c", script, port],
            stdin=subprocess.PIPE,
            text=True,
        ) as guest,
        subprocess.Popen(
            command("events", "-f", "--json"), stdout=subprocess.PIPE, text=True
        ) as watcher,
    ):
        assert guest.stdin is not None
        assert watcher.stdout is not None
        try:
            until(lambda: rows("ps", "guests"))
            os.set_blocking(watcher.stdout.fileno(), False)
            seen = ""

            def ended() -> bool:
                nonlocal seen
                assert guest.stdin is not None
                guest.stdin.write("again\n")
                guest.stdin.flush()
                with contextlib.suppress(TimeoutError):
                    far.settimeout(0.2)
                    far.accept()[0].close()
                with contextlib.suppress(BlockingIOError):
                    seen += os.read(watcher.stdout.fileno(), 1 << 20).decode()
                return seen.endswith("\n") and '"close"' in seen

            until(ended)
        finally:
            watcher.kill()
            guest.stdin.close()
        assert guest.wait(PATIENCE) == 0
    events = [json.loads(line)["event"] for line in seen.splitlines()]
    assert {event["guest"] for event in events} == {HOSTILE}
    assert {event["verb"] for event in events} == {"connect", "close"}
    assert {event["target"] for event in events} == {f"127.0.0.1:{port}"}


# Tries what is refused, by a name that would steer a terminal, under a program's name that would; for each line of its
# input, and once at first.
DECEIVER = """
import ctypes, os, socket, sys
ctypes.CDLL(None).prctl(15, b"co\\x1b[5mm")  # PR_SET_NAME
label = b"\\x1b[2J\\x9bx\\n"
question = bytes((0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(label))) + label
question += b"\\x04test\\x00\\x00\\x01\\x00\\x01"
def once():
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(30)
        sock.sendto(question, ("192.0.2.53", 53))
        sock.recv(512)
    with socket.socket() as sock:
        sock.connect_ex(("169.254.169.254", 80))
    for path in sys.argv[1:]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect_ex(os.fsencode(path))
once()
for line in sys.stdin:
    once()
"""
DECEIVING = [sys.executable, "-c", DECEIVER]
# The program, and the name as DNS writes such labels (RFC 1035, 5.1), its backslashes escaped in turn.
PROGRAM, NAME = "co\\x1b[5mm", "\\\\027[2j\\\\155x\\\\010.test"


def assert_plain(text: str, *wanted: str) -> None:
    """That it does nothing to a terminal but to be read, and says this."""
    assert text.replace("\n", "").replace("\t", "").isprintable(), repr(text)
    assert [word for word in wanted if word not in text] == [], text


@paths
def test_what_a_run_says_of_a_guest_that_deceives(runtime: Path, tmp_path: Path, path: str) -> None:
    learnt = tmp_path / "learnt.toml"
    rules = ("--allow", "198.51.100.1", "--allow", "web.test", "--datapath", path)
    for options in (("--trace",), ("-v",), ("--learn", str(learnt))):
        argv = command("run", "--name", HOSTILE, *options, *rules, "--", *DECEIVING)
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        if options[0] == "--learn":
            assert_plain(done.stderr)
            assert_plain(learnt.read_text(), "# Refused")
            said("policy", "check", str(learnt))
        else:
            assert_plain(done.stderr, PROGRAM, NAME)


UNIX = b"a\x1b]0;g\x07\n\x9b31m\xff\xc2\x9b.sock"  # would steer a terminal, and is no UTF-8


@contextlib.contextmanager
def listening(where: bytes) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(where)
        server.listen()
        yield


def test_a_unix_path_that_deceives(runtime: Path, tmp_path: Path) -> None:
    """A host's socket: refused, and told as text."""
    where = os.path.join(os.fsencode(tmp_path), UNIX)
    code = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX);"
        "print(s.connect_ex(os.fsencode(sys.argv[1])))"
    )
    log = tmp_path / "log"
    with listening(where):
        for options in (("--trace",), ("-v",), ("--trace=json",), ("--audit", str(log))):
            argv = [*command("run", *options), "--", sys.executable, "-c", code, os.fsdecode(where)]
            done = subprocess.run(argv, capture_output=True, timeout=PATIENCE)
            assert done.stdout == b"13\n"
            if options[0] != "--audit":
                assert_plain(done.stderr.decode(), "default: host paths")
    assert_plain(log.read_text())
    (told,) = [json.loads(line) for line in log.read_text().splitlines() if "connect" in line]
    assert told["target"] == f"unix:{os.fsdecode(where)}"


@paths
def test_what_is_seen_of_a_guest_that_deceives(runtime: Path, tmp_path: Path, path: str) -> None:
    told = tmp_path / "told"
    rules = ("--allow", "198.51.100.1", "--allow", "web.test", "--datapath", path)
    where = os.path.join(os.fsencode(tmp_path), UNIX)
    argv = command("run", "--name", HOSTILE, *rules, "--", *DECEIVING, os.fsdecode(where))
    with (
        listening(where),
        told.open("wb") as out,
        subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as guest,
        subprocess.Popen(command("events", "-f"), stdout=out) as watcher,
    ):
        assert guest.stdin is not None
        try:
            until(lambda: "unix:" in str(json.loads(said("status", "--json"))["denials"]))

            def watched() -> bool:
                assert guest.stdin is not None
                guest.stdin.write("again\n")
                guest.stdin.flush()
                return all(word in told.read_text() for word in (PROGRAM, NAME, "a\\x1b]0;g"))

            until(watched)
            assert_plain(said("status"), PROGRAM, "evil\\x1b", "a\\x1b]0;g\\x07\\n")
            assert_plain(said("top", "-n", "1", "--interval", "0.1"), "evil\\x1b")
            assert_plain(said("top", "--plain", "--interval", "0.1"), "evil\\x1b")
            (row,) = rows("ps", "guests")
            known = said("inspect", row["guest"])
            assert_plain(known)
            assert len(json.loads(known)["denials"]) >= 1
        finally:
            watcher.kill()
            guest.stdin.close()
        assert guest.wait(PATIENCE) == 0
    assert_plain(told.read_text().rpartition("\n")[0], PROGRAM, NAME, "a\\x1b]0;g\\x07\\n")


def test_a_guest_does_not_reach_the_control_sockets(runtime: Path) -> None:
    script = (
        "import os, sys\n"
        "try: print(os.listdir(sys.argv[1]))\n"
        "except OSError as error: print('no', error.errno)"
    )
    where = str(runtime / "xensock")
    with subprocess.Popen(command("run", "--", "sleep", "60")) as other:
        until(lambda: list((runtime / "xensock").glob("run-*")))
        until(lambda: rows("ps", "guests"))
        shown = said("run", "--", sys.executable, "-c", script, where)
        assert "run-" not in shown
        said("kill", "sleep")
        assert other.wait(PATIENCE) == 137


@pytest.mark.skipif(bool(guestkit.no_user_namespaces()), reason=guestkit.no_user_namespaces())
def test_who_is_in_another_network_is_turned_away(runtime: Path) -> None:
    with subprocess.Popen(command("run", "--", "sleep", "60")) as guest:
        until(lambda: rows("ps", "guests"))
        (path,) = (runtime / "xensock").glob("run-*")
        script = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
        script += "try: print(s.recv(1))\nexcept ConnectionError: print(b'')"
        done = subprocess.run(
            ["unshare", "--user", "--net", sys.executable, "-c", script, str(path)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.stdout == "b''\n", done.stderr
        said("kill", "sleep")
        guest.wait(PATIENCE)


def test_what_killed_runs_left_behind_goes(runtime: Path) -> None:
    (runtime / "xensock").mkdir(mode=0o700)
    stale = runtime / "xensock" / "run-1"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    assert rows("ps", "guests") == []
    said("run", "--", "true")
    assert not stale.exists()


def traces(*directories: Path) -> dict[str, list[str]]:
    """What a run might leave on this machine: interfaces, mounts, namespaces with names, files."""
    return {
        "interfaces": sorted(name for _, name in socket.if_nameindex()),
        "mounts": sorted(
            line.split(" ", 1)[1] for line in Path("/proc/self/mountinfo").read_text().splitlines()
        ),
        "names": sorted(map(str, Path("/run/netns").glob("*"))),
        "files": sorted(
            str(path)
            for directory in directories
            for path in directory.rglob("*")
            if path.is_file()
        ),
    }


def test_nothing_is_left_behind(
    runtime: Path, far: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a run that ended, and after one that was killed, whose control socket is the next one's to remove."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = traces(tmp_path, runtime)
    allowed = ("--allow", "loopback", "--allow", "listen:any")
    said("run", "--", "true")
    assert list((runtime / "xensock").iterdir()) == []
    assert traces(tmp_path, runtime) == before
    with talking(far, *allowed) as running:
        until(lambda: list((runtime / "xensock").iterdir()))
        assert traces(tmp_path, runtime) == before
        running.process.kill()
        running.process.wait(PATIENCE)
        with contextlib.suppress(ConnectionResetError):
            assert running.client.recv(100) == b""  # every process of the guest is gone
    assert traces(tmp_path, runtime) == before
    said("run", "--", "true")
    assert list((runtime / "xensock").iterdir()) == []


@pytest.mark.ring
def test_a_daemon(runtime: Path, far: socket.socket, tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--allow", "listen:any") as (pid, where, control),
        talking(far, "--backend", f"local:{where}") as running,
    ):
        (guest,) = until(lambda: rows("ps", "guests", "--control", str(control)))
        assert guest["backend"] == pid
        assert len(rows("ps", "guests")) == 2  # the run itself is one, too
        found = rows("ss", "sockets", "--control", str(control))
        (talk,) = (one for one in found if one["state"] == "connected")
        assert talk["peer"] == f"127.0.0.1:{far.getsockname()[1]}"
        told = json.loads(said("kill", "--json", "--control", str(control), talk["connection"]))
        assert told == {"schema": 1, "killed": talk["connection"]}
        assert running.line() in ("ECONNRESET", "EPIPE")
        listener = next(one for one in found if one["state"] == "listening")
        assert "only connections" in said("kill", listener["connection"], status=1)
        told = json.loads(said("kill", "--json", guest["guest"]))
        assert told == {"schema": 1, "killed": guest["guest"]}
        until(lambda: not rows("ps", "guests", "--control", str(control)))


@pytest.mark.ring
def test_events_of_a_daemon(runtime: Path, far: socket.socket, tmp_path: Path) -> None:
    with serving(tmp_path) as (_, where, control), socket.socket(socket.AF_UNIX) as watcher:
        watcher.settimeout(PATIENCE)
        watcher.connect(str(control))
        watcher.sendall(b'{"id": 7, "command": "events"}\n')
        lines = watcher.makefile()
        assert json.loads(lines.readline()) == {"id": 7, "schema": 1, "ok": True}
        with talking(far, "--backend", f"local:{where}"):
            event = json.loads(lines.readline())["event"]
            while event["verb"] != "connect":
                event = json.loads(lines.readline())["event"]
            assert event["target"] == f"127.0.0.1:{far.getsockname()[1]}"
        while event["verb"] != "close":
            event = json.loads(lines.readline())["event"]
        assert event["sent"] == 5
        lines.close()


@pytest.mark.ring
def test_events_of_a_daemon_by_command(runtime: Path, far: socket.socket, tmp_path: Path) -> None:
    """The command ends with the daemon."""
    told = tmp_path / "told"
    with serving(tmp_path) as (_, where, control):
        with told.open("wb") as out:
            watcher = subprocess.Popen(command("events", "--control", str(control)), stdout=out)

        def ended() -> bool:
            with talking(far, "--backend", f"local:{where}"):
                pass  # recording begins once somebody watches
            return "5 bytes sent" in told.read_text()

        until(ended)
    try:
        assert watcher.wait(PATIENCE) == 0
    finally:
        watcher.kill()
    shown = told.read_text()
    assert shown.replace("\n", "").isprintable(), repr(shown)
    assert f"connect(127.0.0.1:{far.getsockname()[1]}) = 0" in shown


@pytest.mark.parametrize("what", ["nobody", "1.1", "1.1/5"])
def test_whom_there_is_not(runtime: Path, what: str) -> None:
    complaint = said("kill", what, status=2)
    assert "no guest has this id or name" in complaint
    assert "hint: guests: none" in complaint


def test_several_are_ended_at_once(runtime: Path, far: socket.socket) -> None:
    """All of them, or where one is unknown none."""
    with talking(far, "--allow", "loopback", "--allow", "listen:any") as running:
        (guest,) = until(lambda: rows("ps", "guests"))
        assert "which guest is nobody?" in said("kill", guest["guest"], "nobody", status=2)
        first, second = said("ss", "-q").split()
        said("kill", first, second)
        assert running.line() in ("ECONNRESET", "EPIPE")
        said("kill", *said("ps", "-q").split())
        running.process.wait(PATIENCE)
    assert said("ps", "-q") == ""


def test_a_control_socket_that_is_none(runtime: Path, tmp_path: Path) -> None:
    complaint = said("ps", "--control", str(tmp_path / "no"), status=1)
    assert "cannot ask the backend" in complaint
    assert "hint: none was started there" in complaint
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "dead"))
    complaint = said("ps", "--control", str(tmp_path / "dead"), status=1)
    assert "hint: it is not running" in complaint
    assert "systemctl start" in complaint
