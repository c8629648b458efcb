"""The process that keeps descriptors: what it has, and when it ends."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from backkit import until
from xensock import _core
from xensock.transport.base import PAGE

WALL = 0x40000000

KEPT = """
import os, socket, sys
from xensock import _core
ours = socket.socket(fileno=int(sys.argv[1]))
first = os.memfd_create("first")
os.write(first, b"first")
print(_core.keeper_start(ours.fileno(), first), flush=True)
later = os.memfd_create("later")
os.write(later, b"later")
print(later, flush=True)
sys.stdin.read()
"""


def ask(keeper: socket.socket, *numbers: int) -> tuple[int, bytes, list[int]]:
    keeper.settimeout(10)
    keeper.send(array.array("i", numbers))
    answer, fds, _, _ = socket.recv_fds(keeper, 300, 250)
    return int.from_bytes(answer[:4], sys.byteorder), answer[4:], fds


def content(fd: int) -> bytes:
    try:
        return os.pread(fd, 100, 0)
    finally:
        os.close(fd)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


def test_it_has_what_was_opened_since_and_outlives_the_process() -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        process = subprocess.Popen(
            [sys.executable, "-c", KEPT, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        assert process.stdout is not None
        pid, later = (int(process.stdout.readline()) for _ in range(2))
        process.kill()
        process.wait()
        said, there, fds = ask(ours, -1, later, 9999)
        assert (said, there) == (pid, b"\1\1\0")
        assert [content(fd) for fd in fds] == [b"first", b"later"]
        os.kill(pid, signal.SIGTERM)  # it is not meant
        assert ask(ours, 9999)[1] == b"\0"
    until(lambda: not alive(pid))
    assert process.stdin is not None
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize("runs", [[(0, 8)], [(4, 2), (1, 1)]], ids=["one", "several"])
def test_it_has_no_memory_of_guests(runs: list[tuple[int, int]]) -> None:
    """That is theirs: it goes when they do, whenever the keeper was made."""
    fd = os.memfd_create("of-a-guest")
    os.ftruncate(fd, 8 * PAGE)
    mapped = _core.map_pages([(fd, first, pages) for first, pages in runs])
    mapped.own()
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = _core.keeper_start(theirs.fileno(), -1)
    assert ask(ours, 9999)[0] == pid
    assert "of-a-guest" in Path("/proc/self/maps").read_text()
    assert "of-a-guest" not in Path(f"/proc/{pid}/maps").read_text()
    ours.close()
    assert os.waitpid(pid, WALL) == (pid, 0)
    theirs.close()
    del mapped
    os.close(fd)


PAIRS = """
import os, signal, socket, struct, sys
from xensock import _core
keeper, *ends = map(int, sys.argv[1:])
marked = socket.socket(fileno=ends[1])
marked.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 47103, 0))
pid = _core.keeper_start(keeper, -1)
os.kill(pid, signal.SIGUSR1)  # not meant
print(pid, flush=True)
sys.stdin.read()
"""


def test_what_ends_with_the_process_is_closed() -> None:
    """Where nobody comes to ask for anything."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ours)
        pairs = [socket.socketpair() for _ in range(2)]
        given = [theirs.fileno(), *(end.fileno() for _, end in pairs)]
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", PAIRS, *map(str, given)],
                pass_fds=given,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        for sock in (theirs, *(end for _, end in pairs)):
            sock.close()
        kept, ended = (stack.enter_context(near) for near, _ in pairs)
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert ask(ours, 9999)[0] == pid
        for near in (kept, ended):
            near.setblocking(False)
            with pytest.raises(BlockingIOError):
                near.recv(1)
        process.kill()
        ended.settimeout(20)
        assert ended.recv(1) == b""
        assert ask(ours, given[1], given[2])[1] == b"\1\0"
        with pytest.raises(BlockingIOError):
            kept.recv(1)
    until(lambda: not alive(pid))


def test_its_end_disturbs_nobody() -> None:
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = _core.keeper_start(theirs.fileno(), -1)
    assert ask(ours, 9999)[0] == pid
    # It has whatever is open here: what is closed here is closed there.
    fd = os.memfd_create("closed")
    os.close(fd)
    assert ask(ours, fd)[1] == b"\0"
    ours.close()
    assert os.waitpid(pid, WALL) == (pid, 0)
    theirs.close()
