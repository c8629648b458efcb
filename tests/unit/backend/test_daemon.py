"""The daemon: who may come, how it starts and ends, what it says."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from backkit import Front, free_port, sockaddr, until
from daemonkit import daemon, gone
from xensock.backend.daemon import Settings, raise_descriptors, serve
from xensock.backend.keeper import Keeper
from xensock.policy.policy import Policy
from xensock.transport import url
from xensock.transport.base import TransportError
from xensock.wire.requests import Bind, Listen
from xensock.wire.states import State

HOST = "127.0.0.1"


def test_a_guest_from_another_process(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        session = url.connect(served.url, name="tester")
        front = Front(session).handshake()
        port = free_port()
        front.listener(port=port)
        with socket.create_connection(("127.0.0.1", port), 5):
            pass
        front.close()
        assert gone(served)
        said = served.stop()
        assert said.count("tester (pid") == 2, said
        assert f"(pid {os.getpid()}, uid {os.getuid()}) connected" in said
        assert served.process.returncode == 0
        records = served.records()
        assert [(r["verb"], r["guest"], r["pid"]) for r in records] == [
            ("bind", "tester", os.getpid()),
            ("listen", "tester", os.getpid()),
        ]


def test_one_that_fails_leaves_the_next_no_listener_without_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(keeper: Keeper) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(Keeper, "start", fail)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as holder:
        holder.bind("")
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + holder.getsockname()[1:].decode())
        where = f"local:{tmp_path}/s"
        with pytest.raises(OSError, match="Cannot allocate"):
            serve(Settings([where], Policy.parse([], []), held=True))
        assert not (tmp_path / "s").exists()
        kept: set[str] = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                told = holder.recv(1000, socket.MSG_DONTWAIT).decode()
                words = dict(line.split("=", 1) for line in told.split("\n"))
                if "FDSTORE" in words:
                    kept.add(words["FDNAME"])
                    most = set(kept)
                elif "FDSTOREREMOVE" in words:
                    kept.discard(words["FDNAME"])
        assert any(name.startswith("listen-") for name in most)
        assert kept == set()


def test_movers_are_at_most_one_thread_per_core(tmp_path: Path) -> None:
    """However many guests and connections there are."""
    with daemon(tmp_path, "--allow=loopback") as served, socket.create_server((HOST, 0)) as far:
        fronts = [Front(url.connect(served.url, name="tester")).handshake() for _ in range(4)]
        for front in fronts:
            for _ in range(4):
                _, stream, response = front.connect(far.getsockname())
                assert response.ret == 0
                stream.send(b"moved")
                with far.accept()[0] as end:
                    assert end.recv(5) == b"moved"
        tasks = Path(f"/proc/{served.process.pid}/task").glob("*/comm")
        movers = [name for task in tasks if (name := task.read_text().strip()) == "xs-mover"]
        assert 1 <= len(movers) <= (os.cpu_count() or 1)
        for front in fronts:
            front.close()


def test_its_sockets_are_its_users_own(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        for name in ("s", "c"):
            mode = (tmp_path / name).stat().st_mode
            assert stat.S_IMODE(mode) == 0o600
        served.stop()
    assert {path.name for path in tmp_path.iterdir()} == {"trace"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    with daemon(tmp_path) as served:
        session = url.connect(served.url, name="tester")
        front = Front(session).handshake()
        served.process.send_signal(number)
        until(lambda: front.back == State.CLOSING)
        front.state(State.CLOSED)
        assert served.process.wait(10) == 0
        front.close()


def test_another_signal_ends_it_at_once(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        session = url.connect(served.url, name="tester")
        front = Front(session).handshake()
        served.process.send_signal(signal.SIGINT)
        until(lambda: front.back == State.CLOSING)  # it waits for the answer
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(10) == -signal.SIGINT
        front.close()


def test_a_guest_that_does_not_answer_the_end_is_disconnected(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        session = url.connect(served.url, name="tester")
        front = Front(session).handshake()
        said = served.stop()
        assert "disconnected: the backend got SIGTERM" in said
        until(lambda: session.error is not None)
        front.close()


def test_two_backends_cannot_have_one_path(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        with pytest.raises(OSError, match="listens") as error:
            url.listen(served.url)
        assert error.value.errno == errno.EADDRINUSE


def test_what_a_dead_backend_left_is_replaced(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        served.process.kill()
        served.process.wait()
    assert (tmp_path / "s").exists()
    with daemon(tmp_path) as served:
        url.connect(served.url, name="tester").close()


def test_its_death_is_noticed_by_guests(tmp_path: Path) -> None:
    with daemon(tmp_path) as served:
        session = url.connect(served.url, name="tester")
        served.process.kill()
        until(lambda: session.error is not None)
        assert isinstance(session.error, TransportError)
        session.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another user's process")
def test_only_users_that_were_told_may_come(tmp_path: Path) -> None:
    script = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "from xensock.transport import url\n"
        "try: url.connect(sys.argv[1], name='other', timeout=5).close(); print('in')\n"
        "except OSError as error: print(type(error).__name__)"
    )

    def try_it(where: str) -> str:
        run = [sys.executable, "-c", script, where]
        return subprocess.run(run, capture_output=True, text=True, timeout=30).stdout.strip()

    for path in (tmp_path, *tmp_path.parents):
        if path.parent != path:
            path.chmod(path.stat().st_mode | 0o011)
    with daemon(tmp_path) as served:
        (tmp_path / "s").chmod(0o666)
        assert try_it(served.url) in ("PermissionError", "TransportError", "ConnectionRefusedError")
    with daemon(tmp_path, "--user", "65534") as served:
        (tmp_path / "s").chmod(0o666)
        assert try_it(served.url) == "in"


def test_rules_of_the_command_line_hold(tmp_path: Path) -> None:
    port = free_port()
    with daemon(tmp_path, "--deny", f"listen:any:{port}") as served:
        session = url.connect(served.url, name="tester")
        front = Front(session).handshake()
        id = front.socket()
        assert front.ret(Bind(id, sockaddr("0.0.0.0", port))) == -errno.EACCES
        assert front.ret(Listen(id, 1)) == 0
        front.close()
        gone(served)
        assert served.records()[0]["decision"] == "deny"


def test_descriptors_are_raised_to_what_is_allowed() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = raise_descriptors()
    assert count >= before[0] or before[0] == resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
