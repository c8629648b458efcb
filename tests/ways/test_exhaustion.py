"""A guest that takes what it can get: others go on, and there is an end to it."""

from __future__ import annotations

import array
import fcntl
import json
import os
import resource
import signal
import socket
import termios
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from semantics.attempts import Service
from world.fixtures import only
from world.namespaces import eventually, needs, stop
from world.runner import Guest
from xensock.pvcalls.serving.limits import Limits

from .conftest import guests, outcome

if TYPE_CHECKING:
    from world.internet import World

pytestmark = pytest.mark.alone
direct = pytest.mark.parametrize("guest", only("direct"), indirect=True)
relayed = pytest.mark.parametrize("guest", only("relay", "ring"), indirect=True)


def run(guest: Guest, tries: Path, *words: object, limits: tuple[str, ...] = ()) -> Any:
    """What tries/takes.py did under these limits."""
    options = tuple(word for limit in limits for word in ("--limit", limit))
    argv = [guest.world.python, str(tries / "takes.py"), *map(str, words)]
    return outcome(guest, argv, options=options, timeout=110)


@direct
def test_sockets(guest: Guest, tries: Path) -> None:
    """Two processes get as many as there may be, together; what they close comes free again."""
    assert run(guest, tries, "sockets", 2, 400, limits=("sockets=500",)) == {
        "made": 500,
        "error": "ENFILE",
        "again": 500,
    }


@pytest.mark.slow
@guests
def test_a_hundred_thousand_sockets(guest: Guest, tries: Path) -> None:
    """Of the host's there is an end by default. In its own network a guest has what its own limits give it."""
    seen = run(guest, tries, "sockets", 0, 100_000)
    if guest.datapath == "direct":
        assert seen == {"made": 65536, "error": "ENFILE", "again": 65536}
    else:
        assert seen["made"] >= 100_000
    assert run(guest, tries, "reach", guest.world.web4, 7) == {"got": "x"}


@direct
def test_ports(guest: Guest, tries: Path) -> None:
    seen = run(guest, tries, "ports", 80, limits=("ports=50",))
    assert seen == {"made": 50, "error": "EADDRINUSE", "again": 50}


@relayed
def test_ports_over_other_paths(guest: Guest, tries: Path) -> None:
    """What is closed comes free a moment later."""
    seen = run(guest, tries, "ports", 80, limits=("ports=50",))
    assert (seen["made"], seen["error"]) == (50, "EADDRINUSE")


@guests
def test_ports_of_datagrams(guest: Guest, tries: Path) -> None:
    """So many for each guest (docs/explanation/udp.md); at another backend as many as that has descriptors for
    (docs/reference/backend.md). Sockets that are closed all at once give every port back."""
    most = 1024
    if guest.datapath == "ring":
        most = min(
            most, Limits.for_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1]).sockets
        )
    seen = run(guest, tries, "datagram_ports", 1100)
    assert seen == {"made": most, "error": "ENFILE", "again": most}


@pytest.mark.slow
@guests
def test_more_flows_than_there_may_be(guest: Guest, tries: Path) -> None:
    """The one idle for longest makes room, and comes again when it is used again."""
    seen = run(guest, tries, "datagram_flows", guest.world.web4, 7, 10_000)
    assert seen == {"got": ["before", "after"]}


@guests
def test_connects_that_nobody_answers(guest: Guest, tries: Path) -> None:
    """Threads wait for a silent host; more than there may be are told so at once, and others connect."""
    words = ("waiting", guest.world.silent4, 60)
    assert run(guest, tries, *words, limits=("connects=20",)) == {"EAGAIN": 40, "waiting": 20}


@relayed
def test_connections_that_are_relayed(guest: Guest, tries: Path) -> None:
    seen = run(guest, tries, "connections", guest.world.web4, 7, 60, limits=("connections=20",))
    assert seen["error"] == "EAGAIN"
    assert 20 <= seen["made"] < 40  # each counts once its bytes can flow, a moment after


@guests
def test_a_flood_of_calls_is_slowed_down(guest: Guest, tries: Path) -> None:
    seen = run(guest, tries, "calls", 1500, limits=("calls=1000",))
    assert seen["calls_a_second"] < 1200
    assert run(guest, tries, "reach", guest.world.web4, 7) == {"got": "x"}


FLOODS = {
    "sockets that are refused": ("flood", "127.0.0.1", 9),
    "calls by one socket": ("flood", "10.9.8.7", 9),
    "a hundred thousand sockets": ("hoard", 100_000),
    "processes that fork and connect": ("forks", "127.0.0.1", 9),
}


@pytest.mark.slow
@guests
@pytest.mark.parametrize("kind", FLOODS)
def test_a_modest_guest_beside_a_greedy_one(
    guest: Guest, world: World, tries: Path, kind: str
) -> None:
    """It keeps at least 80 % of its rate alone. Other work on the machine counts against neither: of three rounds, one
    must show it."""
    peer = world.peer
    with Service(peer.listen(peer.addr4)) as service:
        words = ("modest", peer.addr4, service.port, 3)
        shares = []
        for _ in range(3):
            alone = run(guest, tries, *words)["rate"]
            argv = [world.python, str(tries / "takes.py"), *map(str, FLOODS[kind])]
            env = {"WAYS": "{}"}
            with guest.popen(argv, env=env) as greedy:
                beside = run(guest, tries, *words)["rate"]
                assert greedy.process.poll() is None, greedy.stderr
            shares.append(beside / alone)
            if shares[-1] >= 0.8:
                break
        assert max(shares) >= 0.8, shares


def connecting(world: World, address: str) -> int:
    """How many of the host's sockets wait for an answer from there (/proc/net/tcp, SYN_SENT)."""
    remote = socket.inet_aton(address)[::-1].hex().upper()

    def read() -> int:
        lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
        words = [line.split() for line in lines]
        return sum(each[2].startswith(remote) and each[3] == "02" for each in words)

    return world.host.inside(read)


@pytest.mark.slow
@needs("prlimit")
@guests
def test_a_fork_bomb_of_connects(guest: Guest, world: World, tries: Path) -> None:
    """Its user may have no more processes then, threads of its backend's included: that goes on all the same, counts
    connects as of one guest, and serves it; so do those of others."""
    most = 40
    peer = world.peer
    read_end, write_end = os.pipe()
    with Service(peer.listen(peer.addr4)) as service:
        words = ("bomb", world.silent4, peer.addr4, service.port, most)
        argv = [world.python, str(tries / "takes.py"), *map(str, words)]
        wrapped = guest.command(argv, ("--limit", f"connects={most}"))
        out = guest.directory / "bomb"
        with out.open("wb") as file:
            process = world.host.popen(
                ["prlimit", "--nproc=200", *wrapped],
                user=world.user.name,
                env=world.host.environment(world.user.name, {"WAYS": "{}"}),
                stdin=read_end,
                stdout=file,
                stderr=file,
            )
        os.close(read_end)
        try:
            eventually(lambda: "made" in out.read_text(), 60, "all processes that it may have")
            seen = json.loads(out.read_text().splitlines()[-1])
            assert seen["fork"] == "EAGAIN"
            assert seen["made"] > 2 * most
            assert seen["EAGAIN"] == seen["made"] - most, seen
            assert connecting(world, world.silent4) <= most
            for _ in range(3):
                assert run(guest, tries, "reach", world.web4, 7) == {"got": "x"}
            os.write(write_end, b"\n")
            try:
                eventually(lambda: "got" in out.read_text(), 60, "what it reaches itself")
            except AssertionError as error:
                error.add_note(out.read_text())
                raise
            assert len(service.clients) == 1
            assert "Traceback" not in out.read_text()
        finally:
            os.close(write_end)
            stop(process)
    eventually(lambda: connecting(world, world.silent4) == 0, 20, "the end of its connects")


@guests
def test_a_limit_that_is_reached_is_told_once(guest: Guest, world: World, tries: Path) -> None:
    argv = [world.python, str(tries / "takes.py"), "ports", "40"]
    done = guest.run(argv, options=("--limit", "ports=10"), env={"WAYS": "{}"})
    assert done.stderr.count("has reached its limit of 10 ports; more by --limit ports=N") == 1


def test_the_backend_may_be_stopped_and_goes_on(world: World, xensock: list[str]) -> None:
    """While it is stopped, calls wait; nothing goes past it. (What a dead one means: test_ways_around.py.)"""
    guest = Guest.create(world, "direct", xensock)
    before = world.host.pids()
    read_end, write_end = os.pipe()
    try:
        with Service(world.peer.listen(world.peer.addr4)) as service:
            script = (
                "import socket, sys\n"
                f"print(socket.create_connection(('{world.peer.addr4}', {service.port})).recv(9), flush=True)\n"
                "sys.stdin.readline()\n"
                f"print(socket.create_connection(('{world.peer.addr4}', {service.port})).recv(9), flush=True)\n"
            )
            running = guest.popen([world.python, "-c", script], stdin=read_end)
            os.close(read_end)
            eventually(lambda: running.stdout.count("service") == 1, 20, "the first connection")
            ours = [pid for pid in world.host.pids() - before if _is_backend(pid)]
            assert ours
            for pid in ours:
                os.kill(pid, signal.SIGSTOP)
            try:
                os.write(write_end, b"\n")
                eventually(lambda: _taken(write_end), 20, "the guest goes on to its next call")
                assert len(service.clients) == 1
            finally:
                for pid in ours:
                    os.kill(pid, signal.SIGCONT)
            assert running.wait(20) == 0
            assert len(service.clients) == 2
    finally:
        os.close(write_end)
        guest.close()


def _is_backend(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline") as line:
        return "xensock" in line.read() and os.path.exists(f"/proc/{pid}/exe")


def _taken(pipe: int) -> bool:
    """Whether what was written has been read (pipe(7), FIONREAD)."""
    left = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, left)
    return left[0] == 0
