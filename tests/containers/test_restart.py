"""A backend that is killed under load and comes back: its containers lose nothing. See docs/explanation/restart.md."""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from mortal import begin, mortal, rest, shell, told

from world.processes import eventually, served_by

if TYPE_CHECKING:
    from engines import Engine

OPEN = 20  # connections of each container
ROUNDS = 5
LINES = 5000
CALLS = 15  # of each shell in a round: socket, connect, and for a name questions
BY_NUMBER = "wget -q -O - http://198.51.100.11/address"
BY_NAME = "wget -q -O - http://v4only.test/address"


def whole(connection: socket.socket, script: str) -> None:
    """Have a shell say something and end, and wait until its end is here."""
    connection.sendall(f"{script}; exit\n".encode())
    waits = select.poll()
    waits.register(connection, select.POLLRDHUP)
    assert waits.poll(30_000), "no end"


def received(connection: socket.socket) -> bytes:
    """All that there is, up to the end."""
    got = b""
    while more := connection.recv(65536):
        got += more
    return got


def echoed(sender: socket.socket, data: bytes) -> bool:
    sender.settimeout(1)
    try:
        sender.send(data)
        return sender.recv(100) == data
    except OSError:  # refused: nobody is there yet
        return False
    finally:
        sender.settimeout(30)


@pytest.mark.parametrize("engine", ["podman", "rootless"], indirect=True)
def test_a_backend_that_is_killed_under_load(engine: Engine, command: list[str]) -> None:
    with mortal(engine, command, "--hold") as (ours, holder):
        ports = [ours.world.host.free_port() for _ in range(2)]
        for port in ports:
            ours.start(f"box{port}", "box", "nc", "-ll", "-p", str(port), "-e", "/bin/sh")
        mapped = ours.world.host.free_port()
        label = {"xensock.publish": f"{mapped}:8000"}
        ours.start("mapped", "box", "nc", "-ll", "-p", "8000", "-e", "/bin/sh", labels=label)
        answers = ours.world.host.free_port()
        echo = (f"UDP4-RECVFROM:{answers},fork", "EXEC:/bin/cat")
        ours.start("echo", "box", "socat", *echo)
        sender = ours.world.peer.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.connect((ours.world.host.addr4, answers))
        eventually(lambda: echoed(sender, b"first"), 30, "an answer by UDP")
        held = [shell(ours, port) for port in ports for _ in range(OPEN)]
        said = f"{ours.world.host.addr4}\n".encode()
        try:
            for number in range(ROUNDS):
                what = BY_NAME if number % 2 else BY_NUMBER
                for each in held:
                    begin(each, f"for i in $(seq {CALLS}); do {what} 2>&1; done")
                relayed = shell(ours, mapped)
                assert told(relayed, "echo relayed") == b"relayed\n"
                with_its_end = shell(ours, mapped)
                whole(with_its_end, f"seq {LINES}")
                first = held[0].recv(len(said))  # calls are under way
                os.kill(served_by(holder), signal.SIGKILL)
                sender.send(b"meanwhile %d" % number)
                # Bytes of these went through the backend: one is cut off and says so, the other had all of them.
                with relayed, pytest.raises(ConnectionResetError):
                    relayed.recv(1)
                with with_its_end:
                    assert received(with_its_end) == b"".join(
                        b"%d\n" % n for n in range(1, LINES + 1)
                    )
                with shell(ours, mapped) as meanwhile:
                    assert told(meanwhile, "echo meanwhile") == b"meanwhile\n"
                # Every call is answered as if nothing had been.
                for at, each in enumerate(held):
                    got = (b"" if at else first) + rest(each)
                    wrong = [line for line in got.splitlines(True) if line != said]
                    assert not wrong, (number, at, wrong, ours.said())
                    assert got == said * CALLS
                while (got := sender.recv(100)) != b"meanwhile %d" % number:
                    assert got == b"first"  # a late answer
                # What is open stays open, both ways and byte for byte.
                for each in held[:: len(held) // 4]:
                    text = os.urandom(65536).hex()
                    lines = "\n".join(text[at : at + 1024] for at in range(0, len(text), 1024))
                    assert told(each, f"cat <<'EOF'\n{lines}\nEOF\ntrue").decode() == lines + "\n"
                # Listeners go on, and their port is still the container's own to its loopback.
                for port in ports:
                    late = shell(ours, port)
                    held.append(late)
                    assert told(late, f"echo 'echo own' | nc 127.0.0.1 {port}") == b"own\n"
            # It is the same backend to the engine.
            done = ours.exec(ours.made[0], *BY_NAME.split())
            assert done.stdout.encode() == said
            done = ours.run("box", *BY_NUMBER.split())
            assert done.stdout.encode() == said
        finally:
            sender.close()
            for each in held:
                each.close()
        # A container that ends while nobody serves it is gone for the next one.
        os.kill(served_by(holder), signal.SIGKILL)
        ours.remove()
        done = ours.run("box", *BY_NUMBER.split())  # waits for the backend
        assert done.stdout.encode() == said
