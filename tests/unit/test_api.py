"""xensock.run: what it returns, what it raises, and that nothing is left behind."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import daemonkit
import guestkit
import xensock

if TYPE_CHECKING:
    from pathlib import Path

needs_guests = pytest.mark.skipif(bool(guestkit.missing()), reason=guestkit.missing() or "-")

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])))"


@needs_guests
@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)]
)
def test_the_programs_status(script: str, status: int) -> None:
    done = xensock.run(["sh", "-c", script])
    assert done == xensock.Done(status, ())


@needs_guests
def test_input_output_environment_and_folder(tmp_path: Path) -> None:
    done = xensock.run(
        ["sh", "-c", 'cat; printf "%s %s" "$WORD" "$PWD"; echo grief >&2'],
        input=b"line\n",
        capture=True,
        env={**os.environ, "WORD": "word"},
        cwd=tmp_path,
    )
    assert done.stdout.decode() == f"line\nword {tmp_path}"
    assert done.stderr == b"grief\n"


@needs_guests
def test_a_folder_full_of_modules_does_not_shadow_ours(tmp_path: Path) -> None:
    for name in ("click", "socket", "xensock", "subprocess"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    assert xensock.run(["true"], cwd=tmp_path).status == 0


@needs_guests
def test_the_calls_it_made() -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        port = host.getsockname()[1]
        command = [sys.executable, "-c", CONNECT, "127.0.0.1", str(port)]
        done = xensock.run(command, name="caller", rules=["loopback"])
        assert done.status == 0
        (call,) = [c for c in done.calls if c.verb == "connect"]
        assert (call.guest, call.target, call.decision, call.error) == (
            "caller",
            f"127.0.0.1:{port}",
            "allow",
            0,
        )
        assert call.rule == "loopback"
        assert 0 <= call.duration < 30


@needs_guests
@pytest.mark.parametrize(
    ("rules", "error", "rule"),
    [
        (["allow connect:loopback"], 0, "connect:loopback"),
        (["loopback", "deny 127.0.0.1"], errno.ECONNREFUSED, "127.0.0.1"),
        (["deny loopback", "allow loopback"], errno.ECONNREFUSED, "loopback"),
        (["deny   127.0.0.0/8"], errno.ECONNREFUSED, "127.0.0.0/8"),
        ([], errno.ECONNREFUSED, "default: host loopback"),
    ],
)
def test_rules(rules: list[str], error: int, rule: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as host:
        address = [str(word) for word in host.getsockname()]
        done = xensock.run([sys.executable, "-c", CONNECT, *address], rules=rules, capture=True)
    (call,) = [c for c in done.calls if c.verb == "connect"]
    # Where no rule lets it out, the guest's own loopback is asked, where nobody listens.
    assert (call.error, call.rule) == (error, rule)


@needs_guests
@pytest.mark.parametrize("kind", [str, lambda text: [text]], ids=["one", "list"])
def test_a_backend_carries_what_no_route_is_about(tmp_path: Path, kind: Any) -> None:
    with (
        daemonkit.daemon(tmp_path, "--allow", "loopback") as backend,
        socket.create_server(("127.0.0.1", 0)) as far,
    ):
        command = [sys.executable, "-c", CONNECT, "127.0.0.1", str(far.getsockname()[1])]
        options = {"rules": ["loopback"], "backend": kind(f"b={backend.url}")}
        done = xensock.run(command, **options)
        routed = xensock.run(command, **options, route=kind("loopback=host"))
    assert (done.status, routed.status) == (0, 0)
    paths = [[c.datapath for c in d.calls if c.verb == "connect"] for d in (done, routed)]
    assert paths == [["ring"], ["relay"]]


def test_a_backend_that_is_not_there(tmp_path: Path, capfd: Any) -> None:
    url = f"local:{tmp_path}/s"
    with pytest.raises(xensock.RunError, match="cannot reach the backend") as caught:
        xensock.run(["touch", str(tmp_path / "begun")], backend=url)
    assert caught.value.status == 125
    assert f"xensock backend --listen {url}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@needs_guests
def test_a_published_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    script = (
        "import socket; s = socket.create_server(('127.0.0.1', 3000)); print(s.accept()[0].recv(9))"
    )
    command = [
        *(sys.executable, "-c"),
        f"import xensock; xensock.run([{sys.executable!r}, '-c', {script!r}], publish=['127.0.0.1:{port}:3000'])",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as runner:
        for _ in range(1000):
            try:
                with socket.create_connection(("127.0.0.1", port), 5) as client:
                    client.sendall(b"hello")
                break
            except ConnectionRefusedError:
                select.select([], [], [], 0.02)
        assert runner.stdout is not None
        assert runner.stdout.read() == b"b'hello'\n"


@needs_guests
@pytest.mark.parametrize(
    ("program", "status"), [("no-such-program", 127), ("/", 126), ("/dev/null", 126)]
)
def test_a_program_that_cannot_be_run(program: str, status: int, capfd: Any) -> None:
    with pytest.raises(xensock.RunError) as caught:
        xensock.run([program])
    assert caught.value.status == status
    assert program in str(caught.value)


@needs_guests
def test_a_guest_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("XENSOCK_TEST_FAIL", "netns:EPERM")
    with pytest.raises(xensock.RunError) as caught:
        xensock.run(["true"])
    assert caught.value.status == 125
    assert "network namespace" in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"rules": ["pubilc"]},
        {"rules": ["allow any:99999"]},
        {"rules": ["deny http://web.test/"]},
        {"publish": ["x"]},
        {"publish": ["80:80:80"]},
        {"datapath": "fast"},
        {"backend": "/run/xensock"},
        {"backend": ["a=local:/s", "a=local:/t"]},
        {"backend": "local:/s", "datapath": "direct"},
        {"backend": "local:/s", "route": "any=vpn"},
        {"backend": "local:/s", "route": ["any"]},
        {"route": "any=host"},
    ],
)
def test_a_malformed_call_is_a_value_error(options: dict[str, Any], capfd: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        xensock.run(["true"], **options)
    assert capfd.readouterr().err == ""


def test_no_program_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="program"):
        xensock.run([])


@needs_guests
def test_a_timeout_ends_the_guest(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    script = f"exec 9> {fifo}; echo up >&9; setsid sleep 1000 & exec sleep 1000"
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            xensock.run(["sh", "-c", script], timeout=3)
        said = b""
        while True:  # the pipe ends with the last process of the guest
            assert select.select([reader], [], [], 10)[0], "the guest is still there"
            data = os.read(reader, 100)
            if not data:
                break
            said += data
        assert said == b"up\n"
    finally:
        os.close(reader)


@needs_guests
def test_nothing_is_left_in_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    xensock.run(["true"])
    with pytest.raises(xensock.RunError):
        xensock.run(["no-such-program"])
    assert list(tmp_path.iterdir()) == []


def test_names_of_the_package() -> None:
    assert set(xensock.__all__) <= {name for name in xensock.__all__ if hasattr(xensock, name)}
    with pytest.raises(AttributeError, match="nothing"):
        _ = xensock.nothing


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xensock", "version"], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0
    assert xensock.__version__ in done.stdout
