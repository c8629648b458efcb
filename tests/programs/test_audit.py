"""`--audit` of real guests: every call and every connection's end, over every data path, in its schema."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import guestkit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PATIENCE = 60
paths = pytest.mark.parametrize("path", guestkit.paths())

CLIENT = """
import socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for _ in range(count):
    with socket.create_connection((host, port)) as sock:
        sock.sendall(b"q" * 100)
        data = b""
        while got := sock.recv(4096):
            data += got
        assert data == b"a" * 5000
"""
SERVER = """
import socket
with socket.create_server(("", 0)) as server:
    print(server.getsockname()[1], flush=True)
    with server.accept()[0] as sock:
        sock.recv(10, socket.MSG_WAITALL)
        sock.sendall(b"z" * 70)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1)  # to count exactly the kernel must have seen the other end's FIN, too
"""


@contextmanager
def answering() -> Iterator[int]:
    """A server on the host's loopback that reads 100 bytes and answers 5000; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    sock, _ = server.accept()
                except OSError:
                    return
                with sock:
                    sock.recv(100, socket.MSG_WAITALL)
                    sock.sendall(b"a" * 5000)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)


def command(*options: str) -> list[str]:
    return [sys.executable, "-P", "-m", "xensock", *options]


def run(log: Path, options: Sequence[str], argv: Sequence[str]) -> list[dict[str, Any]]:
    done = subprocess.run(
        command("run", "--audit", str(log), *options, "--", *argv),
        timeout=PATIENCE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return lines(log)


def lines(log: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["seq"] for line in found] == list(range(1, len(found) + 1))
    return found


def of_kind(found: list[dict[str, Any]], kind: str, verb: str) -> list[dict[str, Any]]:
    return [line for line in found if (line["kind"], line.get("verb")) == (kind, verb)]


@paths
def test_every_connection_begins_and_ends(tmp_path: Path, path: str) -> None:
    """Over the direct path all but the first are decided by the core's cache."""
    with answering() as port:
        found = run(
            tmp_path / "log",
            ["--datapath", path, "--allow", "loopback", "--name", "g"],
            [sys.executable, "-c", CLIENT, "127.0.0.1", str(port), "20"],
        )
    begun, ended = of_kind(found, "call", "connect"), of_kind(found, "end", "close")
    assert len(begun) == len(ended) == 20
    assert {line["connection"] for line in begun} == {line["connection"] for line in ended}
    for line in (*begun, *ended):
        assert (line["guest"], line["decision"], line["rule"]) == ("g", "allow", "loopback")
        assert (line["target"], line["datapath"]) == (f"127.0.0.1:{port}", path)
        assert line["program"].startswith("python")
        assert line["error"] == 0
        assert line["duration"] > 0
        assert line["user"] == os.geteuid()
    assert {(line["sent"], line["received"]) for line in ended} == {(100, 5000)}


@paths
def test_a_log_of_many_files(tmp_path: Path, path: str) -> None:
    """None exceeds the size, however many records wait together; every line is in one of them."""
    log = tmp_path / "log"
    options = ["--audit", str(log), "--audit-size", "8K", "--audit-keep", "200"]
    with answering() as port:
        done = subprocess.run(
            command(
                "run", *options, "--datapath", path, "--allow", "loopback", "--",
                sys.executable, "-c", CLIENT, "127.0.0.1", str(port), "200",
            ),
            timeout=PATIENCE, capture_output=True, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [*sorted(tmp_path.glob("log.*"), key=lambda p: -int(p.suffix[1:])), log]
    assert len(files) > 10
    sizes = [p.stat().st_size for p in files]
    assert max(sizes) <= 8192
    # A file is rotated when the next line has no room.
    assert min(sizes[:-1]) > 8192 - 1024
    found = [json.loads(line) for p in files for line in p.read_text().splitlines()]
    assert len(of_kind(found, "call", "connect")) == len(of_kind(found, "end", "close")) == 200
    assert sorted(line["seq"] for line in found) == list(range(1, len(found) + 1))
    numbers = [line["seq"] for line in found if line["kind"] != "open"]
    assert numbers == sorted(numbers)


def test_a_run_that_is_killed_leaves_every_record(tmp_path: Path) -> None:
    """Of what had happened some milliseconds before; the next one to open the file cuts off what is torn."""
    log = tmp_path / "log"
    with answering() as port:
        code = f"{CLIENT}\nprint('done', flush=True)\nsys.stdin.read()"
        options = ["--audit", str(log), "--allow", "loopback", "--"]
        argv = [sys.executable, "-c", code, "127.0.0.1", str(port), "20"]
        with subprocess.Popen(
            command("run", *options, *argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"done\n"
            deadline = time.monotonic() + PATIENCE
            while log.read_bytes().count(b'"kind":"end"') < 20:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.kill(json.loads(log.read_bytes().partition(b"\n")[0])["pid"], signal.SIGKILL)
            process.kill()
    with log.open("ab") as file:
        file.write(b'{"schema":1,"seq":99,"ki')
    subprocess.run(command("run", "--audit", str(log), "--", "true"), check=True, timeout=PATIENCE)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(of_kind(found, "call", "connect")) == len(of_kind(found, "end", "close")) == 20
    assert [line.get("torn") for line in found if line["kind"] == "open"] == [None, 24]


@pytest.mark.skipif("direct" not in guestkit.paths(), reason="no direct data path here")
def test_verdicts_of_the_cache_are_recorded(tmp_path: Path) -> None:
    """The host's own address: the same destination again and again, which the core decides by itself."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.listen(64)
        port = server.getsockname()[1]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("198.51.100.1", 9))
            except OSError:
                pytest.skip("this host has no address but loopback")
            host = probe.getsockname()[0]
        script = (
            "import socket, sys\n"
            "for _ in range(30): socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()"
        )
        found = run(
            tmp_path / "log",
            ["--datapath", "direct", "--allow", f"{host}:{port}"],
            [sys.executable, "-c", script, host, str(port)],
        )
    assert len(of_kind(found, "call", "connect")) == 30
    assert len(of_kind(found, "end", "close")) == 30
    assert {line["rule"] for line in found[1:]} == {f"{host}:{port}"}


@paths
def test_what_a_guest_accepts(tmp_path: Path, path: str) -> None:
    log = tmp_path / "log"
    options = ["--audit", str(log), "--datapath", path, "--"]
    with subprocess.Popen(
        command("run", *options, sys.executable, "-c", SERVER), stdout=subprocess.PIPE, text=True
    ) as guest:
        assert guest.stdout is not None
        port = int(guest.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            own = client.getsockname()
            client.sendall(b"0123456789")
            data = b""
            while got := client.recv(100):
                data += got
        assert data == b"z" * 70
        assert guest.wait(PATIENCE) == 0
    (end,) = of_kind(ended(log, 1), "end", "close")
    assert end["target"] == f"{own[0]}:{own[1]}"
    assert end["accepted"]
    assert (end["sent"], end["received"], end["datapath"]) == (70, 10, path)


@paths
def test_what_is_refused_and_a_name(tmp_path: Path, path: str) -> None:
    script = (
        "import socket\n"
        "print(socket.socket().connect_ex(('198.51.100.7', 443)))\n"
        "print(socket.getaddrinfo('localhost', 80))"
    )
    found = run(
        tmp_path / "log",
        ["--datapath", path, "--deny", "198.51.100.0/24"],
        [sys.executable, "-c", script],
    )
    (refused,) = of_kind(found, "call", "connect")
    assert (refused["decision"], refused["rule"]) == ("deny", "198.51.100.0/24")
    assert (refused["error"], refused["connection"]) == (13, 0)
    assert not of_kind(found, "end", "close")


# Threads that connect at once, and a program under many names.
THREADS = """
import socket, sys, threading
def dial():
    for _ in range(500):
        socket.create_connection(("127.0.0.1", int(sys.argv[1]))).close()
threads = [threading.Thread(target=dial) for _ in range(4)]
for each in threads: each.start()
for each in threads: each.join()
"""
NAMES = """
import ctypes, socket, sys, time
name = ctypes.CDLL(None).prctl
for i in range(1200):
    name(15, b"n%d" % i)  # PR_SET_NAME
    time.sleep(0.0012)
    for _ in range(5):
        with socket.socket() as sock:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", int(sys.argv[1])))
"""


@contextmanager
def taking() -> Iterator[int]:
    """A server on the host's loopback that takes connections and lets them go; its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:

        def serve() -> None:
            while True:
                try:
                    server.accept()[0].close()
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(PATIENCE)


@pytest.mark.parametrize("source", ["program", "multicast"])
@pytest.mark.parametrize(
    ("script", "count"), [(THREADS, 2000), (NAMES, 6000)], ids=["threads", "names"]
)
def test_many_at_once(tmp_path: Path, script: str, count: int, source: str) -> None:
    """Each call has its line and each connection its end, whichever way the kernel tells of that: where root sees no
    cgroup it has the way of ordinary users."""
    hidden = []
    if source == "multicast" and os.geteuid() == 0:
        blind = "awk '$3 == \"cgroup2\" {print $2}' /proc/self/mounts | xargs -r umount -l"
        hidden = ["unshare", "--mount", "sh", "-c", f'{blind}; exec "$@"', "-"]
    log = tmp_path / "log"
    with taking() as port:
        argv = ["--allow", "loopback", "--datapath", "direct", "--audit", str(log), "--"]
        done = subprocess.run(
            [*hidden, *command("run", *argv, sys.executable, "-c", script, str(port))],
            timeout=PATIENCE,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    found = ended(log, count)
    begun, gone = of_kind(found, "call", "connect"), of_kind(found, "end", "close")
    assert len(begun) == len(gone) == count
    numbers = {line["connection"] for line in begun}
    assert len(numbers) == count
    assert {line["connection"] for line in gone} == numbers
    if script is NAMES:
        assert {line["program"] for line in begun} >= {"n3", "n1199"}


def ended(log: Path, count: int) -> list[dict[str, Any]]:
    """The log once it has so many ends: who called `xensock run` goes on before the last bytes are counted."""
    import time

    deadline = time.monotonic() + PATIENCE
    while len(of_kind(found := lines(log), "end", "close")) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.mark.ring
def test_a_backend_and_its_guest_record_both(tmp_path: Path) -> None:
    """The backend audits what it carries out, the guest's own side what it sees."""
    where, log = tmp_path / "sock", tmp_path / "backend.log"
    daemon = subprocess.Popen(
        command(
            "backend", "--listen", f"local:{where}", "--allow", "loopback", "--audit", str(log)
        ),
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert daemon.stderr is not None
        assert "listening" in daemon.stderr.readline()
        with answering() as port:
            argv = [sys.executable, "-c", CLIENT, "127.0.0.1", str(port), "3"]
            options = ["--backend", f"local:{where}", "--name", "g"]
            run(tmp_path / "guest.log", options, argv)
            own = ended(tmp_path / "guest.log", 3)
        theirs = ended(log, 3)
    finally:
        daemon.terminate()
        daemon.communicate(timeout=PATIENCE)
    for found in (own, theirs):
        begun, gone = of_kind(found, "call", "connect"), of_kind(found, "end", "close")
        assert len(begun) == len(gone) == 3
        assert {line["connection"] for line in begun} == {line["connection"] for line in gone}
        assert {(line["sent"], line["received"]) for line in gone} == {(100, 5000)}
        assert {line["datapath"] for line in gone} == {"ring"}


# Calls of every kind, allowed, refused and failing, whose records are the same each time.
KINDS = """
import socket, sys
port, own, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
def tried(call, *words):
    try:
        call(*words)
    except OSError:
        pass
def dial(where, family=socket.AF_INET, kind=socket.SOCK_STREAM, again=1):
    for _ in range(again):
        with socket.socket(family, kind) as sock:
            tried(sock.connect, where)
def serve(host, port):
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except OSError:
            return
        tried(sock.listen)
dial(("127.0.0.1", port), again=3)
dial(("198.51.100.7", 443), again=2)
dial(("169.254.169.254", 80))
dial(path, socket.AF_UNIX)
dial(("198.51.100.7", 443), kind=socket.SOCK_DGRAM)
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    tried(sock.sendto, b"x", ("198.51.100.7", 443))
serve("0.0.0.0", own)
serve("0.0.0.0", 80)
serve("127.0.0.1", own)
"""
ALIKE = (
    "guest",
    "verb",
    "target",
    "name",
    "decision",
    "rule",
    "hint",
    "datapath",
    "result",
    "error",
)


@paths
def test_the_log_has_every_call_that_a_trace_has(tmp_path: Path, path: str) -> None:
    """Two runs: one that is traced, and one whose records are made for the log alone."""
    with answering() as port, socket.socket() as free, socket.socket(socket.AF_UNIX) as local:
        free.bind(("0.0.0.0", 0))
        own = free.getsockname()[1]
        free.close()
        local.bind(str(tmp_path / "s"))
        local.listen(8)
        rules = ["--allow", "loopback", "--allow", f"listen:any:{own}", "--deny", "198.51.100.0/24"]
        options = ["--datapath", path, "--name", "g", *rules]
        argv = [sys.executable, "-c", KINDS, str(port), str(own), str(tmp_path / "s")]
        found = run(tmp_path / "log", options, argv)
        traced = subprocess.run(
            command("run", "--trace=json", *options, "--", *argv),
            timeout=PATIENCE,
            capture_output=True,
            text=True,
        )
    shown = [json.loads(line) for line in traced.stderr.splitlines()]

    def plain(calls: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps([call[name] for name in ALIKE]) for call in calls)

    logged = [line for line in found if line["kind"] == "call"]
    assert plain(logged) == plain(shown)
    seen = {(line["verb"], line["decision"]) for line in logged}
    assert seen >= {
        ("connect", "allow"), ("connect", "deny"), ("bind", "allow"), ("bind", "deny"), ("bind", "guest"),
        ("listen", "allow"), ("send", "deny"),
    }  # fmt: skip
    assert any(line["target"].endswith("/s") for line in logged)


@paths
def test_calls_go_on_where_the_log_cannot(tmp_path: Path, path: str) -> None:
    """As is chosen by default: a log that cannot grow (RLIMIT_FSIZE) has the first records, whole."""
    log = tmp_path / "log"
    with answering() as port:
        argv = [sys.executable, "-c", CLIENT, "127.0.0.1", str(port), "200"]
        done = subprocess.run(
            [
                "sh", "-c", 'ulimit -f 64; trap "" XFSZ; exec "$@"', "sh",
                *command("run", "--audit", str(log), "--datapath", path, "--allow", "loopback"),
                "--", *argv,
            ],
            timeout=PATIENCE,
            capture_output=True,
            text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"cannot write the audit log {log}: File too large" in done.stderr
    whole = log.read_bytes().rpartition(b"\n")[0]
    found = [json.loads(line) for line in whole.splitlines()]
    assert [line["seq"] for line in found] == list(range(1, len(found) + 1))
    assert 10 < len(of_kind(found, "call", "connect")) < 200


@paths
def test_no_call_goes_unrecorded_where_that_is_refused(tmp_path: Path, path: str) -> None:
    """The log cannot grow (RLIMIT_FSIZE), so calls fail: the loopback is then the guest's own (ECONNREFUSED)."""
    log = tmp_path / "log"
    script = (
        "import socket, sys, time\n"
        "said = set()\n"
        "end = time.monotonic() + 30\n"
        "while not said & {13, 111} and time.monotonic() < end:\n"
        "    with socket.socket() as s:\n"
        "        said.add(s.connect_ex(('127.0.0.1', int(sys.argv[1]))))\n"
        "sys.exit(not said & {13, 111})"
    )
    with answering() as port:
        done = subprocess.run(
            [
                "sh", "-c", 'ulimit -f 64; trap "" XFSZ; exec "$@"', "sh",
                *command("run", "--audit", str(log), "--audit-full", "refuse", "--datapath", path),
                "--allow", "loopback", "--", sys.executable, "-c", script, str(port),
            ],
            timeout=PATIENCE,
            capture_output=True,
            text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"cannot write the audit log {log}: File too large" in done.stderr


def test_a_refusal_over_rings_is_explained_by_the_backend(tmp_path: Path) -> None:
    """Where the rule is written, and which came next, is said where the file is."""
    policy, log, where = tmp_path / "p.toml", tmp_path / "log", tmp_path / "s"
    policy.write_text('[[rule]]\ndeny = "198.51.100.0/24"\n\n[[rule]]\nallow = "198.51.0.0/16"\n')
    options = ["--listen", f"local:{where}", "--policy", str(policy), "--audit", str(log)]
    code = "import socket; print(socket.socket().connect_ex(('198.51.100.1', 80)))"
    with subprocess.Popen(
        command("backend", *options), stderr=subprocess.PIPE, text=True
    ) as backend:
        try:
            assert backend.stderr is not None
            assert "listening" in backend.stderr.readline()
            argv = ["--backend", f"local:{where}", "--trace=json", "--", sys.executable, "-c", code]
            done = subprocess.run(
                command("run", *argv), capture_output=True, text=True, timeout=PATIENCE
            )
        finally:
            backend.terminate()
            backend.communicate(timeout=PATIENCE)
    assert done.stdout == f"{errno.EACCES}\n"
    (told,) = of_kind(lines(log), "call", "connect")
    assert (told["decision"], told["rule"]) == ("deny", "198.51.100.0/24")
    assert told["source"] == f"{policy}:2"
    assert f"198.51.0.0/16 ({policy}:5)" in told["also"], told["also"]
    records = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    (own,) = [record for record in records if record["verb"] == "connect"]
    assert (own["rule"], own["hint"]) == (told["rule"], told["hint"])
    assert (own["source"], own["also"]) == ("", "")
