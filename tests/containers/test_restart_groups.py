"""A backend that is killed while a container is in multicast groups. See docs/explanation/restart.md."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engines import OWN
from mortal import mortal, python
from udpkit import GROUP, free_port, sender

from world.processes import eventually, served_by

if TYPE_CHECKING:
    from engines import Engine

    from world.internet import World

PROGRAM = Path(__file__).with_name("member.py")


def members(world: World, family: int) -> int:
    """How many of the host's sockets are in the group, as its kernel counts them (/proc/net/igmp, igmp6)."""
    packed = socket.inet_pton(socket.AF_INET6 if family == 6 else socket.AF_INET, GROUP[family])
    name = packed.hex() if family == 6 else packed[::-1].hex().upper()

    def read() -> int:
        text = Path(f"/proc/thread-self/net/{'igmp6' if family == 6 else 'igmp'}").read_text()
        lines = [line.split() for line in text.splitlines() if name in line.split()]
        return sum(int(words[words.index(name) + 1]) for words in lines)

    return world.host.inside(read)


class Member:
    """A container that runs member.py; `sock` sends to its group from elsewhere."""

    def __init__(self, engine: Engine, family: int, sock: socket.socket) -> None:
        self.world, self.group, self.sock = engine.world, GROUP[family], sock
        self.port, self.later = free_port(self.world.host), free_port(self.world.host)
        options, argv = python(PROGRAM, family, self.group, self.port, self.later)
        label = {"xensock.policy": "groups"}
        engine.start("member", *options, "machine", *argv, labels=label)
        logs = ("logs", "member")
        eventually(lambda: "joined" in engine(*logs).stdout, 30, "the group is joined")

    def told(self, said: bytes, to: int = 0) -> bytes:
        """The answer to what is sent to the group."""
        self.sock.sendto(said, (self.group, to or self.port))
        return self.sock.recv(100)


def policy(engine: Engine, family: int, allowed: bool = True) -> None:
    """What the container may: bind ports, and be in the group."""
    every, group = ("[::]", f"[{GROUP[6]}]") if family == 6 else ("0.0.0.0", GROUP[4])
    rules = [f"listen:{every}:1024-65535/udp", *([f"listen:{group}"] if allowed else [])]
    (engine.directory / "policies").mkdir(exist_ok=True)
    text = "".join(f'[[rule]]\nallow = "{rule}"\n' for rule in rules)
    (engine.directory / "policies" / "groups.toml").write_text(text)


families = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def prepared(engine: Engine, images: dict[str, Path], family: int) -> Engine:
    if family == 6 and not engine.world.has_ipv6:
        pytest.skip("this host has no IPv6")
    engine("import", str(images["machine"]), "machine", timeout=120)
    return engine


@families
@pytest.mark.parametrize("engine", ["docker", "podman"], indirect=True)
def test_members_stay_members(prepared: Engine, family: int) -> None:
    """Who is bound hears what is sent meanwhile; who joined before and binds after it is a member as well."""
    world = prepared.world
    with mortal(prepared, OWN, "--hold") as (ours, holder), sender(world, family) as sock:
        policy(ours, family)
        member = Member(ours, family, sock)
        assert members(world, family) == 1
        assert member.told(b"one") == b"one"
        os.kill(served_by(holder), signal.SIGKILL)
        assert member.told(b"meanwhile") == b"meanwhile"
        assert member.told(b"bind") == b"bind"
        assert member.told(b"two", member.later) == b"later two"
        assert members(world, family) == 2
        # Once more: what was taken over is kept as what was joined.
        os.kill(served_by(holder), signal.SIGKILL)
        assert member.told(b"three", member.later) == b"later three"
        assert member.told(b"leave") == b"leave"
        assert members(world, family) == 0


@families
@pytest.mark.parametrize("engine", ["podman"], indirect=True)
def test_a_group_that_the_rules_of_a_successor_do_not_allow(prepared: Engine, family: int) -> None:
    world = prepared.world
    host = world.host.addr6 if family == 6 else world.host.addr4
    with mortal(prepared, OWN, "--hold") as (ours, holder), sender(world, family) as sock:
        policy(ours, family)
        member = Member(ours, family, sock)
        assert member.told(b"one") == b"one"
        policy(ours, family, allowed=False)
        os.kill(served_by(holder), signal.SIGKILL)
        eventually(lambda: members(world, family) == 0, 30, "the group is left")
        # The port is still its own, and who binds later does not come into the group either.
        sock.sendto(b"to the group", (member.group, member.port))
        sock.sendto(b"bind", (host, member.port))
        assert sock.recv(100) == b"bind refused"
        assert members(world, family) == 0
