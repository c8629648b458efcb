"""The launcher and what the backend holds of a guest: messages, sockets, signals, the end."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import guestkit
from xensock import _core
from xensock.supervisor import filter as guest_filter
from xensock.supervisor import launch
from xensock.supervisor.diag import cookie
from xensock.supervisor.launch import Launch, Launched, LaunchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SO_NETNS_COOKIE = 71
FILTER = guest_filter.build(False)
LANDLOCK = "direct" in guestkit.paths()

needs_guests = pytest.mark.skipif(bool(guestkit.missing()), reason=guestkit.missing() or "-")


def spec(*argv: str, **options: Any) -> Launch:
    return Launch(argv=argv, filter=FILTER, landlock=LANDLOCK, **options)


@contextmanager
def running(*argv: str, **options: Any) -> Iterator[Launched]:
    """A guest whose trapped calls the C core answers; programs here ask nothing of Python."""
    guest = launch.start(spec(*argv, **options))
    handle = _core.super_start(guest.listener, False, guest.killable)

    def drain() -> None:
        while _core.super_next(handle, -1) is not None:
            pass

    thread = threading.Thread(target=drain)
    thread.start()
    try:
        yield guest
    finally:
        guest.close()
        _core.super_stop(handle)
        thread.join()


def events(guest: Launched) -> list[tuple[str, int]]:
    """What the launcher says, up to the guest's end."""
    said = []
    while (event := guest.next_event()) is not None:
        said.append(event[:2])
    return said


@needs_guests
@pytest.mark.parametrize(
    ("argv", "status"),
    [(("true",), 0), (("sh", "-c", "exit 7"), 7 << 8), (("sh", "-c", "kill -9 $$"), 9)],
)
def test_the_end_of_a_program(argv: tuple[str, ...], status: int) -> None:
    with running(*argv) as guest:
        said = events(guest)
    assert said[0] == ("E", status)
    assert [kind for kind, _ in said] == ["E", "D"]


@needs_guests
@pytest.mark.parametrize(("program", "error"), [("absent", errno.ENOENT), ("/", errno.EACCES)])
def test_a_program_that_cannot_be_executed(program: str, error: int) -> None:
    with running(program) as guest:
        assert ("X", error) in events(guest)


@needs_guests
def test_sockets_of_the_guests_network() -> None:
    with running("sleep", "1000") as guest, socket.socket() as ours:
        with guest.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            theirs = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
            assert theirs != ours.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
            assert not sock.get_inheritable()
            sock.bind(("198.51.100.7", 0))  # every address is the guest's
            sock.listen()
            assert sock.getsockname()[0] == "198.51.100.7"
            diag = guest.diag()
            from ipaddress import ip_address

            assert diag.listener(ip_address("198.51.100.7"), sock.getsockname()[1]) == cookie(sock)
            diag.close()
        with pytest.raises(OSError, match=os.strerror(errno.EPROTONOSUPPORT)):
            guest.socket(socket.AF_INET, socket.SOCK_STREAM, 17)
        with guest.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
            assert sock.type & 0xF == socket.SOCK_DGRAM


@needs_guests
def test_several_threads_ask_for_sockets() -> None:
    kinds = [socket.SOCK_STREAM, socket.SOCK_DGRAM]
    wrong = []

    def ask(guest: Launched, kind: int) -> None:
        for _ in range(50):
            with guest.socket(socket.AF_INET, kind) as sock:
                real = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
                wrong.extend([real] if real != kind else [])

    with running("sleep", "1000") as guest:
        threads = [threading.Thread(target=ask, args=(guest, kind)) for kind in kinds * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@needs_guests
def test_no_socket_once_the_guest_is_gone() -> None:
    with running("true") as guest:
        events(guest)
        guest.helper.wait(30)
        with pytest.raises(ProcessLookupError):
            guest.socket(socket.AF_INET, socket.SOCK_STREAM)


@needs_guests
def test_signals() -> None:
    with running("sleep", "1000") as guest:
        guest.signal(signal.SIGTERM)
        assert events(guest)[0] == ("E", signal.SIGTERM)
        guest.signal(signal.SIGTERM)  # nobody is there any more


@needs_guests
def test_close_ends_everything_in_the_guest(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    script = f"exec 9>{fifo}; echo up >&9; (setsid sh -c 'trap \"\" TERM HUP; sleep 1000') & exec sleep 1000"
    try:
        with running("sh", "-c", script):
            assert select.select([reader], [], [], 30)[0]
            assert os.read(reader, 10) == b"up\n"
        # Closed above: the last writer is gone at once.
        assert select.select([reader], [], [], 10)[0]
        assert os.read(reader, 10) == b""
    finally:
        os.close(reader)


@needs_guests
def test_the_program_has_what_it_was_given_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    given_end, other = os.pipe()
    os.set_inheritable(given_end, True)
    script = f"for f in /proc/$$/fd/*; do readlink $f; done >{out}.new; mv {out}.new {out}"
    with running("sh", "-c", script) as guest:
        assert events(guest)[0] == ("E", 0)
    listed = out.read_text().splitlines()
    natively = subprocess.run(
        ["sh", "-c", script], close_fds=False, check=True, stdin=None, timeout=30
    )
    assert natively.returncode == 0
    assert f"pipe:[{os.fstat(given_end).st_ino}]" in listed
    assert sorted(listed) == sorted(out.read_text().splitlines())
    os.close(given_end)
    os.close(other)


@needs_guests
def test_the_environment_and_the_name_of_init(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = f'echo "$WORD $$ $(cat /proc/1/comm)" >{out}'
    with running("sh", "-c", script, env={**os.environ, "WORD": "word"}) as guest:
        assert events(guest)[0] == ("E", 0)
    assert out.read_text() == "word 2 xensock-init\n"


@needs_guests
def test_hidden_paths_are_empty_or_null(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "inside").touch()
    file.write_text("secret")
    script = f'test -z "$(ls -A {folder})" && test -z "$(cat {file})"'
    hide = [str(folder), str(file), str(tmp_path / "absent")]
    with running("sh", "-c", script, hide=hide) as guest:
        assert events(guest)[0] == ("E", 0)
    assert (folder / "inside").exists()
    assert file.read_text() == "secret"


ONLY_USER, ONLY_ROOT = {"userns", "uidmap"}, {"caps"}


@needs_guests
@pytest.mark.parametrize("stage", [stage for stage in launch.STAGES if stage])
def test_every_stage_that_fails_is_named(stage: str) -> None:
    passed = ONLY_USER if os.geteuid() == 0 else ONLY_ROOT
    if stage in passed or (stage == "landlock" and not LANDLOCK):
        with running("true", forced_failure=(stage, errno.EXDEV)) as guest:
            assert events(guest)[0] == ("E", 0)  # such a guest does not pass there
        return
    with pytest.raises(LaunchError) as caught:
        launch.start(spec("true", forced_failure=(stage, errno.EXDEV)))
    assert (caught.value.stage, caught.value.errno) == (stage, errno.EXDEV)


@needs_guests
def test_failures_leave_nothing_open() -> None:
    def mine() -> list[str]:
        return sorted(
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        )

    before = len(mine())
    for stage in ("netns", "mountns", "seccomp"):
        with pytest.raises(LaunchError):
            launch.start(spec("true", forced_failure=(stage, errno.EPERM)))
    assert len(mine()) == before


def test_a_launcher_that_was_not_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_core, "__file__", str(tmp_path / "_core.so"))
    with pytest.raises(LaunchError) as caught:
        launch.launcher_path()
    assert (caught.value.stage, caught.value.errno) == ("launcher", errno.ENOENT)
    shutil.copy("/bin/sh", tmp_path / "xensock-init")
    (tmp_path / "xensock-init").chmod(0o600)
    with pytest.raises(LaunchError):
        launch.launcher_path()


def said_to(config: bytes) -> tuple[str, int, int]:
    """The launcher's first message for this configuration."""
    fd = os.memfd_create("config")
    os.write(fd, config)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    maker, far_maker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, maker:
        numbers = [theirs.fileno(), far_maker.fileno(), fd]
        with subprocess.Popen(
            [str(launch.launcher_path()), *map(str, numbers)], pass_fds=numbers
        ) as launcher:
            os.close(fd)
            theirs.close()
            far_maker.close()
            ours.settimeout(30)
            kind, a, b, _ = launch.MESSAGE.unpack(ours.recv(64))
            ours.close()
            launcher.wait(30)
    return chr(kind), a, b


GOOD = launch._config(spec("sh", "-c", "exit 0", hide=["/nowhere", "/else"]), os.geteuid() == 0)
CONFIG_FAILED = ("F", launch.STAGES.index("config"), errno.EINVAL)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, len(GOOD) - 1))
def test_a_configuration_that_is_cut_short_is_refused(length: int) -> None:
    assert said_to(GOOD[:length]) == CONFIG_FAILED


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0), (7, 4097), (7, 2**32 - 1), (8, 9), (8, 2**32 - 1), (9, 0), (9, 2**32 - 1)],
)
def test_a_configuration_that_lies_is_refused(at: int, value: int) -> None:
    config = bytearray(GOOD)
    struct.pack_into("=I", config, 4 * at, value)
    assert said_to(bytes(config)) == CONFIG_FAILED
