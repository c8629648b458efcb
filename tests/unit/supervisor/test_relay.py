"""The relay as a whole: what it counts, and what it leaves behind."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from relaykit import Ground, error_of, events, read, until

import nskit
from xensock import _core
from xensock.calls.address import Endpoint

pytestmark = pytest.mark.skipif(bool(nskit.missing()), reason=nskit.missing())


def test_close_leaves_nothing():
    before = set(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    ground = Ground()
    held = ground.client(blocking=False)
    assert ground.connect_to(held, Endpoint.from_python(("192.0.2.77", 80))) == errno.EINPROGRESS
    with ground.pair() as (guest, far):
        until(lambda: ground.relay.connections() == 1)
        ground.relay.close()
        ground.relay.close()
        for sock in (guest, far):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    assert ground.relay.connections() == 0
    with ground.client() as late, ground.server() as server:
        assert ground.connect(late, server) == errno.ENETDOWN
    held.close()
    ground.close()
    assert threading.active_count() == threads
    assert set(os.listdir("/proc/self/fd")) == before


def test_close_lets_what_was_sent_arrive():
    ground = Ground()
    try:
        with ground.pair() as (guest, far):
            guest.sendall(bytes(1 << 20))
            guest.close()
            ground.relay.close(linger=5)
            assert len(read(far, 2 << 20)) == 1 << 20
    finally:
        ground.close()


def test_a_held_guest_is_refused_when_the_relay_closes():
    """Nobody answers it any more: its kernel's next SYN meets no listener."""
    ground = Ground()
    try:
        with ground.client(blocking=False) as guest:
            unanswered = Endpoint.from_python(("192.0.2.77", 80))
            ground.host.ip("neigh add 192.0.2.77 lladdr 02:00:00:00:00:77 dev h0 nud permanent\n")
            assert ground.connect_to(guest, unanswered) == errno.EINPROGRESS
            assert events(guest, 50) == 0
            ground.relay.close()
            assert events(guest, 5000)
            assert error_of(guest) == errno.ECONNREFUSED
    finally:
        ground.close()


KILLED = """
import os, signal, sys
from xensock import _core
mover = _core.mover_open(1)
assert _core.mover_add(mover, int(sys.argv[1]), int(sys.argv[2]), False)
sys.stdin.read(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    near.settimeout(30)
    return near, far


def test_what_is_cut_short_by_a_kill_does_not_look_whole() -> None:
    """The direction that had ended is whole and stays so; the other ends by ECONNRESET."""
    guest, near = tcp_pair()
    far, out = tcp_pair()
    with guest, far:
        argv = [sys.executable, "-c", KILLED, str(near.fileno()), str(out.fileno())]
        fds = (near.fileno(), out.fileno())
        with near, out:
            process = subprocess.Popen(argv, pass_fds=fds, stdin=subprocess.PIPE)
        with process:
            guest.sendall(b"all of it")
            guest.shutdown(socket.SHUT_WR)
            far.sendall(b"a part")
            assert guest.recv(100) == b"a part"
            select.select([far], [], [], 30)
            assert far.recv(9, socket.MSG_WAITALL) == b"all of it"
            assert far.recv(1) == b""
            assert process.stdin is not None
            process.stdin.write(b"x")
            process.stdin.flush()
            assert process.wait(30) == -signal.SIGKILL
            with pytest.raises(ConnectionResetError):
                guest.recv(1)


ECHOES = """
import os, socket, sys, time
near, far, go = (int(word) for word in sys.argv[1:])
near, far = socket.socket(fileno=near), socket.socket(fileno=far)
os.read(go, 1)
for _ in range(100):
    near.sendall(b"there")
    far.sendall(far.recv(5, socket.MSG_WAITALL))
    assert near.recv(5, socket.MSG_WAITALL) == b"there"
print(time.monotonic())
"""


def test_bytes_move_while_this_process_holds_the_gil() -> None:
    """Another process sends through the mover and back, meanwhile one call of Python's runs to its end."""
    mover = _core.mover_open(1)
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname()) as near,
            server.accept()[0] as guest,
            socket.create_connection(server.getsockname()) as far,
            server.accept()[0] as way,
        ):
            ends = guest.dup(), way.dup()
            for end in ends:
                end.setblocking(False)
            _core.mover_add(mover, ends[0].detach(), ends[1].detach(), False)
            waits, go = os.pipe()
            handed = (near.fileno(), far.fileno(), waits)
            with subprocess.Popen(
                [sys.executable, "-c", ECHOES, *map(str, handed)],
                pass_fds=handed,
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                os.write(go, b"x")
                pow(3, 1 << 23)  # a second or two, and it never lets go of the GIL
                held_until = time.monotonic()
                assert process.stdout is not None
                moved = float(process.stdout.read())
            os.close(waits)
            os.close(go)
        assert moved < held_until
    finally:
        _core.mover_close(mover, 0)
