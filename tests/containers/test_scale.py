"""Kills of the backend at scale: a thousand connections, a hundred listeners, ten in a row; and one with no successor.

See docs/explanation/restart.md.
"""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import select
import signal
import socket
import tempfile
import time
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mortal import mortal, python

from world.processes import eventually, served_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engines import Engine

pytestmark = pytest.mark.parametrize("engine", ["docker", "podman", "rootless"], indirect=True)

CONNECTIONS, LISTENERS, KILLS = 1000, 100, 10
RELAYED = 20
RESET_S = 1.0  # what docs/explanation/restart.md promises of connections over the relay
BLOCK = 4096
OPTIONS = ("--hold", "--allow=any", "--allow=listen:any")
ECHO = ("198.51.100.11", 7)
PROGRAM = Path(__file__).with_name("many.py")


class Guest:
    """The program of many.py in a container."""

    def __init__(
        self, engine: Engine, name: str, listeners: int, labels: dict[str, str] | None = None
    ) -> None:
        talk = Path(tempfile.mkdtemp(prefix="talk-", dir=engine.directory))
        for each in ("commands", "answers"):
            os.mkfifo(talk / each)
        if engine.user is not None:
            for each in (talk, *talk.iterdir()):
                engine.world.user.own(each)
        # For both directions, so that opening them waits for nobody.
        self._commands = os.open(talk / "commands", os.O_RDWR | os.O_CLOEXEC)
        self._answers = os.open(talk / "answers", os.O_RDWR | os.O_CLOEXEC)
        options, argv = python(PROGRAM, listeners, *ECHO)
        engine.start(name, *options, f"--volume={talk}:/talk", "machine", *argv, labels=labels)
        self._engine, self._name = engine, name
        self.ports: list[int] = self._answer()

    def __call__(self, *words: object) -> Any:
        os.write(self._commands, " ".join(map(str, words)).encode() + b"\n")
        return self._answer()

    def _answer(self) -> Any:
        got = b""
        while not got.endswith(b"\n"):
            ready, _, _ = select.select([self._answers], [], [], 60)
            assert ready, self._engine("logs", self._name, check=False).stderr + self._engine.said()
            got += os.read(self._answers, 65536)
        return json.loads(got)

    def close(self) -> None:
        os.close(self._commands)
        os.close(self._answers)


class Line:
    """A connection to one of its listeners. `sent`, `got`: digests of all bytes so far."""

    def __init__(self, host: str, port: int) -> None:
        self._sock = socket.create_connection((host, port), 30)
        self.sent, self.got = sha256(), sha256()

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)
        self.sent.update(data)

    def receive(self, count: int) -> None:
        while count:
            data = self._sock.recv(count)
            assert data, "it was ended"
            self.got.update(data)
            count -= len(data)

    def close(self) -> None:
        self._sock.close()


@contextmanager
def opened(engine: Engine, ports: list[int], count: int) -> Iterator[list[Line]]:
    """So many connections from elsewhere, the ports in turn."""
    host = engine.world.host.addr4
    made: list[Line] = []

    def connect() -> None:
        made.extend(Line(host, ports[number % len(ports)]) for number in range(count))

    engine.world.peer.inside(connect)
    try:
        yield made
    finally:
        for each in made:
            each.close()


@pytest.fixture
def _descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(4096, before[1])), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def ended(guest: Guest, count: int) -> list[tuple[float, str]]:
    """When and how its connections over the relay ended, once all have."""

    def all_of_them() -> list[tuple[float, str]] | None:
        found = guest("ends")
        return found if len(found) == count else None

    return eventually(all_of_them, 60, "the end of every connection over the relay", 0.05)


@pytest.mark.usefixtures("_descriptors")
def test_ten_kills_under_load(engine: Engine, command: list[str], record_property) -> None:
    block = random.Random(6).randbytes(BLOCK)
    ends, back, backends = [], [], set()
    with mortal(engine, command, *OPTIONS) as (ours, holder):
        many = Guest(ours, "many", LISTENERS)
        relay = Guest(ours, "relay", 1, {"xensock.datapath": "relay"})
        assert len(set(many.ports)) == LISTENERS
        try:
            with opened(ours, many.ports, CONNECTIONS) as lines:
                many("call")
                for _ in range(KILLS):
                    relay("open", RELAYED)
                    for line in lines[::2]:
                        line.send(block)
                    backends.add(backend := served_by(holder))
                    killed = time.monotonic()
                    os.kill(backend, signal.SIGKILL)
                    for line in lines[1::2]:
                        line.send(block)
                    for line in lines:
                        line.receive(BLOCK)
                    # Those that went through the backend end, and nobody waits for them.
                    found = ended(relay, RELAYED)
                    assert {how for _, how in found} == {"ConnectionResetError"}
                    ends.append(max(when for when, _ in found) - killed)
                    assert ends[-1] <= RESET_S, sorted(when - killed for when, _ in found)

                    # Each caller is answered, whatever it was about to do, and goes on: two turns of its calls.
                    before = many("progress")["done"]

                    def on(before: list[int] = before) -> bool:
                        now = many("progress")["done"]
                        return all(a >= b + 2 for a, b in zip(now, before, strict=True))

                    eventually(on, 60, "answers", 0.02)
                    back.append(time.monotonic() - killed)
                    # All listeners go on.
                    with opened(ours, many.ports, LISTENERS) as late:
                        for line in late:
                            line.send(block)
                            line.receive(BLOCK)
                assert len(backends) == KILLS
                assert many("progress")["wrong"] == []
                for line in lines:
                    assert line.sent.digest() == line.got.digest()
        finally:
            many.close()
            relay.close()
    record_property("relayed_end_after_s", round(max(ends), 3))
    record_property("answered_after_s", round(max(back), 3))
    print(f"relayed ended after {max(ends):.3f} s, calls answered after {max(back):.3f} s")


def test_relayed_ones_end_though_no_backend_follows(engine: Engine, command: list[str]) -> None:
    """Also where the backend has guests over rings, whose sockets are kept for the next one."""
    rings = f"--listen=local:{engine.directory / 'mortal' / 'rings'}"
    label = {"xensock.datapath": "relay"}
    with mortal(engine, command, *OPTIONS, rings) as (ours, holder):
        relay, direct = Guest(ours, "relay", 1, label), Guest(ours, "direct", 1)
        try:
            with (
                opened(ours, direct.ports, 1) as (line,),
                opened(ours, relay.ports, 1) as (client,),
            ):
                client.send(b"first")
                client.receive(5)
                relay("open", RELAYED)
                backend = served_by(holder)
                holder.send_signal(signal.SIGSTOP)  # it starts no other one
                killed = time.monotonic()
                ended_by(backend)
                found = ended(relay, RELAYED)
                with pytest.raises(ConnectionResetError):
                    client.receive(1)
                assert {how for _, how in found} == {"ConnectionResetError"}
                assert max(when for when, _ in found) - killed <= RESET_S
                # The other's are its own.
                line.send(b"still")
                line.receive(5)
                holder.send_signal(signal.SIGCONT)
                relay("open", 1)
                with opened(ours, relay.ports, 1) as (client,):
                    client.send(b"again")
                    client.receive(5)
        finally:
            holder.send_signal(signal.SIGCONT)
            relay.close()
            direct.close()


def test_holder_and_backend_both_gone(engine: Engine, command: list[str]) -> None:
    """What a container asks for is refused, and nothing of it comes to the network."""
    world = engine.world
    target = world.peer.listen(world.peer.addr4)
    port = target.getsockname()[1]
    heard = world.peer.socket(socket.AF_INET, socket.SOCK_DGRAM)
    heard.bind((world.peer.addr4, port))
    with (
        target,
        heard,
        mortal(engine, command, *OPTIONS) as (ours, holder),
    ):
        guest = Guest(ours, "alone", 1)
        try:
            guest("prepare")
            before = guest("attempt", world.peer.addr4, port)
            assert (before["connect"], before["send"], before["new"]) == (0, 0, 0), before
            for _ in range(sum(before[way] == 0 for way in ("connect", "fast open", "new"))):
                target.accept()[0].close()
            assert heard.recv(10) == b"x"
            guest("prepare")
            with opened(ours, guest.ports, 1) as (line,):
                backend = served_by(holder)
                holder.kill()  # first, else it would start another
                holder.wait()
                ended_by(backend)
                after = guest("attempt", world.peer.addr4, port)
                assert after.pop("fast open") == before["fast open"] == errno.EOPNOTSUPP
                after.pop("send")  # a datagram may be taken, see below
                assert set(after.values()) <= {errno.ENOSYS, errno.EPERM}, after
                # None of it came: the first that does is ours.
                with world.host.connect(world.peer.addr4, port) as first:
                    came, whose = target.accept()
                    came.close()
                    assert whose == first.getsockname()
                with world.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
                    first.sendto(b"ours", (world.peer.addr4, port))
                    assert heard.recv(10) == b"ours"
                # What it held is still its own.
                line.send(b"still")
                line.receive(5)
                assert line.sent.digest() == line.got.digest()
        finally:
            guest.close()


def ended_by(pid: int) -> None:
    """Kill a process, and see it gone."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}/stat").exists() or dead(pid), 30, "its end")
    finally:
        os.close(pidfd)


def dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
