"""The load program over the kernel's sockets and over libxensock, with a backend in between."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from xensock.bench import ring, stream_client
from xensock.bench.failure import BenchError
from xensock.bench.machine import host_address
from xensock.bench.side import Setting, xensock


@pytest.fixture
def setting() -> Setting:
    return Setting(xensock(), host_address(), seconds=0, trips=50, held=100)


@pytest.mark.parametrize("guests", [False, True], ids=["tcp", "guests"])
def test_bytes_arrive_on_both_sides(setting: Setting, guests: bool) -> None:
    with ring.throughput(setting, 4096, 2, guests=guests) as pair:
        assert 0.001 < pair.native() < 1000
        assert 0.001 < pair.ours() < 1000
        assert 0.001 < pair.ours() < 1000


def test_a_python_programs_bytes_arrive(setting: Setting) -> None:
    with ring.python(setting, 65536) as pair:
        assert 0.001 < pair.native() < 1000
        assert 0.001 < pair.ours() < 1000


def test_a_server_that_leaves_before_its_report_is_an_error() -> None:
    near, far = socket.socketpair()

    def leave() -> None:
        with far:
            while far.recv(1 << 20):
                pass

    thread = threading.Thread(target=leave)
    thread.start()
    with near, pytest.raises(EOFError):
        stream_client.rate(near, 0, 65536)
    thread.join()


@pytest.mark.parametrize("guests", [False, True], ids=["tcp", "guests"])
def test_round_trips_take_microseconds(setting: Setting, guests: bool) -> None:
    with ring.round_trips(setting, guests=guests) as pair:
        assert 1 < pair.native() < 1e5
        assert 0.1 < pair.ours() < 1e5


def test_connections_and_messages_are_counted(setting: Setting) -> None:
    with ring.connections(setting) as pair:
        assert pair.native() > 10
        assert pair.ours() > 10
    with ring.messages(setting) as pair:
        assert pair.native() > 1000
        assert pair.ours() > 1000


@pytest.mark.alone
def test_memory_of_an_idle_connection(setting: Setting) -> None:
    with ring.idle_connections(setting) as pair:
        assert pair.native() == 0
        # At least the ring's indexes page; not the ring, of which nothing was used.
        assert 1024 < pair.ours() < 200_000


def test_the_backend_goes_with_the_block(setting: Setting) -> None:
    with ring.backend(setting) as (url, process):
        path = Path(url.removeprefix("local:"))
        assert path.is_socket()
        assert process.poll() is None
    assert process.poll() is not None
    assert not path.exists()


def test_a_missing_load_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xensock.__path__", ["/nonexistent"])
    monkeypatch.setattr("sysconfig.get_path", lambda _: "/nonexistent")
    with pytest.raises(BenchError, match="xensock-ringload") as caught:
        ring.load_program()
    assert "make build" in caught.value.hint


def test_nothing_is_no_throughput() -> None:
    assert ring.gbits("125000000\n") == 1
    with pytest.raises(BenchError):
        ring.gbits("0\n")
