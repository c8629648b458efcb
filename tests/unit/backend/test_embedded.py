"""The embedded backend: which data path, forced failures, and what its front learns."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import guestkit
from xensock import _core
from xensock.backend.embedded import Embedded, Order, choose_path, forced_failure
from xensock.policy.policy import Policy
from xensock.supervisor.launch import ExecError, LaunchError
from xensock.supervisor.relay_server import Server

if TYPE_CHECKING:
    from pathlib import Path

    from xensock.calls.record import Record

ENOSYS = ("landlock", errno.ENOSYS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("netns:EPERM", ("netns", errno.EPERM)),
        ("landlock:ENOSYS", ENOSYS),
        ("", None),
        ("netns", None),
        (":EPERM", None),
        ("netns:NOSUCH", None),
    ],
)
def test_forced_failures(text: str, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENSOCK_TEST_FAIL", text)
    assert forced_failure() == expected


def test_no_forced_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XENSOCK_TEST_FAIL", raising=False)
    assert forced_failure() is None


@pytest.mark.parametrize(
    ("wanted", "abi", "forced", "expected"),
    [
        ("auto", 4, None, (True, True)),
        ("direct", 7, None, (True, True)),
        ("relay", 4, None, (False, True)),
        ("auto", 3, None, (False, False)),
        ("auto", 0, None, (False, False)),
        ("relay", 0, None, (False, False)),
        ("auto", 4, ENOSYS, (False, False)),
        ("auto", 4, ("netns", errno.EPERM), (True, True)),
    ],
)
def test_the_data_path(
    wanted: str, abi: int, forced: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "landlock_abi", lambda: abi)
    assert choose_path(wanted, forced) == expected


@pytest.mark.parametrize(("abi", "forced"), [(3, None), (0, None), (4, ENOSYS)])
def test_direct_without_a_guard_is_an_error(
    abi: int, forced: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "landlock_abi", lambda: abi)
    with pytest.raises(LaunchError) as caught:
        choose_path("direct", forced)
    assert caught.value.stage == "landlock"
    assert caught.value.errno == (errno.ENOSYS if forced else errno.EOPNOTSUPP)


def serve(argv: list[str], path: str = "relay", tell: bool = False) -> dict[str, Any]:
    """Embedded.run in a process of its own, which it may do with as it likes; what came of it.

    With `tell` it says first what calls were recorded.
    """
    if guestkit.missing():
        pytest.skip(guestkit.missing())
    near, far = socket.socketpair()
    out, out_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            near.close()
            os.dup2(out_end, 1)

            def detach(code: int) -> None:
                far.send(b"detached %d;" % code)

            records: list[Record] = []
            record = records.append if tell else None
            order = Order(argv, Policy.parse(), "test", path, record=record, detach=detach)
            try:
                said = f"status {Embedded(order, sys.stderr.write).run(far)}"
            except (LaunchError, ExecError) as error:
                said = f"{type(error).__name__} {error.errno}"
            told = "".join(f"{r.verb} {r.target} {r.error};" for r in records)
            far.send((told + said).encode())
        finally:
            os._exit(0)
    far.close()
    os.close(out_end)
    result: dict[str, Any] = {"front": near, "pid": pid, "out": out}
    return result


def ended(run: dict[str, Any]) -> tuple[str, bytes]:
    said = b""
    run["front"].settimeout(30)
    while data := run["front"].recv(4096):
        said += data
    run["front"].close()
    output = b""
    while data := os.read(run["out"], 4096):
        output += data
    os.close(run["out"])
    assert os.waitpid(run["pid"], 0)[1] == 0
    return said.decode(), output


def test_the_status_and_the_output() -> None:
    assert ended(serve(["sh", "-c", "echo hello; exit 3"])) == ("detached 3;status 3", b"hello\n")


def test_signals_from_the_front_reach_the_program() -> None:
    run = serve(["sh", "-c", "trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done"])
    assert os.read(run["out"], 100) == b"up\n"
    run["front"].send(bytes([signal.SIGUSR1]))
    assert ended(run)[0] == "detached 9;status 9"


def test_the_end_of_the_front_ends_the_guest() -> None:
    run = serve(["sh", "-c", "echo up; exec sleep 1000"])
    assert os.read(run["out"], 100) == b"up\n"
    run["front"].shutdown(socket.SHUT_WR)
    assert ended(run)[0] == "detached 125;status 125"


def test_a_program_that_leaves_others_behind_detaches(tmp_path: Path) -> None:
    hold, late = tmp_path / "hold", tmp_path / "late"
    os.mkfifo(hold)
    os.mkfifo(late)
    run = serve(["sh", "-c", f"(read line <{hold}; echo late >{late}) >/dev/null & exit 4"])
    run["front"].settimeout(30)
    assert run["front"].recv(100) == b"detached 4;"
    hold.write_text("go\n")
    assert late.read_text() == "late\n"
    assert ended(run)[0] == "status 4"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("no-such-program", f"ExecError {errno.ENOENT}"),
        ("/dev/null", f"ExecError {errno.EACCES}"),
    ],
)
def test_a_program_that_cannot_be_executed(program: str, expected: str) -> None:
    assert ended(serve([program]))[0] == expected


@pytest.mark.parametrize("path", guestkit.paths())
def test_a_call_that_ends_its_program_is_recorded(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program learns the outcome first, so it may be gone before the outcome's record is fetched."""
    fetch = _core.super_next
    late: list[_core.Event | _core.Run] = []

    def slow(handle: _core.Handle, timeout: int) -> list[_core.Event | _core.Run] | None:
        events = fetch(handle, timeout)
        if timeout == 0:  # nobody waits any longer: the guest is gone
            events = [late.pop(0)] if late else events
        elif events is not None:
            late.extend(found for found in events if len(found) == 3)
            events = [found for found in events if len(found) != 3]
        return events

    monkeypatch.setattr(_core, "super_next", slow)
    program = "import socket; socket.socket().connect_ex(('127.0.0.1', 9))"
    told = ended(serve([sys.executable, "-c", program], path, tell=True))[0]
    assert told == f"detached 0;connect 127.0.0.1:9 {errno.ECONNREFUSED};status 0"


def test_a_listener_whose_end_the_relay_has_not_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of it by messages, which may come late, or be lost."""
    monkeypatch.setattr(Server, "watch", lambda *arguments: None)
    program = "import socket; listener = socket.create_server(('', 0)); print('up')"
    assert ended(serve([sys.executable, "-c", program])) == ("detached 0;status 0", b"up\n")


def test_no_thread_outlives_a_run() -> None:
    before = threading.active_count()
    ended(serve(["true"]))
    assert threading.active_count() == before
