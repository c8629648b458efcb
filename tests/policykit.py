"""What tests of policy files share: files, and what a program in a guest can reach under them."""

from __future__ import annotations

import json
import os
import signal
import ssl
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from world.fixtures import only
from world.namespaces import eventually

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from world.runner import Guest, Running

SERVER, DNS, PORT = "10.77.0.5", "10.77.0.53", 7077  # of the office

# What a person is told of a call that no network of its rule carries.
NO_WAY = "no network of its via is there, with a way there: bring one up"

GUESTS = only("direct", "relay", "ring")
EMBEDDED = only("direct", "relay")

# Connects to each HOST PORT in turn; prints what came of it, and what the peer is called.
REACH = """
import errno, json, socket, sys
for host, port in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        with socket.create_connection((host, int(port)), timeout=8) as sock:
            peer = sock.getpeername()[0]
            print(json.dumps(["ok", peer]))
    except socket.gaierror:
        print(json.dumps(["NONAME", ""]))
    except OSError as error:
        print(json.dumps([errno.errorcode.get(error.errno, str(error)), ""]))
"""

# For each HOST PORT: a datagram by a socket that is connected, then by one that sends to all; what comes back. Where
# connect(2) fails nobody tells the other one.
EXCHANGE = """
import socket, sys
shared = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
shared.settimeout(10)
def answer(sock, expected):
    while True:
        data, source = sock.recvfrom(2048)
        if data == expected:
            return "%s from %s:%d" % (data.decode(), *source)
for number, (host, port) in enumerate(zip(sys.argv[1::2], map(int, sys.argv[2::2]))):
    where = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
    text = b"loose%d" % number
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.settimeout(10)
        try:
            own.connect(where)
        except OSError as error:
            print(error.errno)
            shared.sendto(text, where)
            continue
        own.send(b"bound")
        try:
            print(answer(own, b"bound"))
        except ConnectionRefusedError as error:
            print(error.errno)
            continue
    shared.sendto(text, where)
    print(answer(shared, text))
"""

# Says each line of hexadecimal digits to HOST PORT, a connection each, and prints how much of it comes back.
SAY = """
import errno, socket, sys
host, port = sys.argv[1], int(sys.argv[2])
for line in sys.stdin:
    data = bytes.fromhex(line)
    with socket.create_connection((host, port), timeout=8) as sock:
        try:
            for at in range(0, len(data), 100):
                sock.sendall(data[at : at + 100])
            got = b""
            while len(got) < len(data):
                more = sock.recv(1 << 16)
                if not more:
                    break
                got += more
            print(got == data, flush=True)
        except OSError as error:
            print(errno.errorcode[error.errno], flush=True)
"""


def written(guest: Guest, text: str, name: str = "policy.toml") -> tuple[str, ...]:
    """The options for a policy file of this text."""
    path: Path = guest.directory / name
    path.write_text(text)
    return "--policy", str(path)


def complaints(guest: Guest, running: Running) -> str:
    """What the one that decides said on stderr."""
    return guest.backends()[0].stderr if guest.datapath == "ring" else running.stderr


def change(guest: Guest, running: Running, text: str) -> None:
    """Replace the policy and wait until it is in force, or was refused."""
    before = complaints(guest, running).count("the policy was ")
    new = guest.directory / "new.toml"
    new.write_text(text)
    os.replace(new, guest.directory / "policy.toml")
    eventually(lambda: complaints(guest, running).count("the policy was ") > before, 30, "a reload")


def by_a_backend(
    guest: Guest, other: str, via: str = '"lab"'
) -> tuple[tuple[str, ...], subprocess.Popen[bytes]]:
    """The options for a policy that sends ports 7 to 12 of the world's web server by another backend, and port 7 of
    `other` by the host; and that backend, which allows port 7."""
    web = guest.world.web4
    far = guest.backend(("--allow", f"{web}:7"), "xstest")
    text = f"""
[networks]
lab = {{ backend = "{far}" }}

[[rule]]
allow = "{web}:7-12"
via = {via}

[[rule]]
allow = "{other}:7"
"""
    return written(guest, text), guest.backends()[0].process


@contextmanager
def prompted(
    guest: Guest, argv: list[str], options: tuple[str, ...]
) -> Iterator[tuple[Running, Callable[[], object]]]:
    """A program that runs in a guest, and what lets it read one more line."""
    pipe = guest.directory / "go"
    wrap = ["sh", "-c", 'exec 3<>"$0"; exec "$@" <&3', str(pipe)]
    guest.world.host.run(["mkfifo", "-m", "666", str(pipe)], check=True)
    with guest.popen([*wrap, *argv], options=options) as running, pipe.open("r+b", 0) as go:
        yield running, lambda: go.write(b"\n")


@contextmanager
def hanging(
    guest: Guest, script: str, via: str = '"lab"', more: tuple[str, ...] = ()
) -> Iterator[tuple[Running, Callable[[], object], Callable[[], None]]]:
    """A script in Python with the addresses of a server by another backend (`by_a_backend`) and of one beside it. Once
    it says "warm hello" and waits, that backend is stopped. What it runs as, what lets it read a line, and what has
    the backend go on, as it does at the end."""
    web, intra = guest.world.web4, "198.51.100.12"
    options, backend = by_a_backend(guest, intra, via)
    try:
        argv = [guest.world.python, "-c", script, web, intra]
        with prompted(guest, argv, (*options, *more)) as (running, go):
            eventually(lambda: "warm hello" in running.stdout, 20, "the first answer")
            backend.send_signal(signal.SIGSTOP)
            yield running, go, lambda: backend.send_signal(signal.SIGCONT)
    finally:
        backend.send_signal(signal.SIGCONT)


def reached(
    guest: Guest,
    *places: str,
    options: tuple[str, ...],
    python: str | None = None,
) -> list[str]:
    """What came of connecting to each HOST:PORT in one guest."""
    return [result for result, _ in peers(guest, *places, options=options, python=python)]


def peers(
    guest: Guest, *places: str, options: tuple[str, ...], python: str | None = None
) -> list[list[Any]]:
    """What came of connecting to each HOST:PORT, and the peer's address as the program sees it."""
    words = [word for place in places for word in place.rsplit(":", 1)]
    done = guest.run(
        [python or guest.world.python, "-c", REACH, *words], options=options, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def said(guest: Guest, place: str, options: tuple[str, ...], *lines: bytes) -> list[str]:
    """What came of saying each of these to a server that echoes them."""
    argv = [guest.world.python, "-c", SAY, *place.rsplit(":", 1)]
    text = "".join(f"{line.hex()}\n" for line in lines)
    done = guest.run(argv, options=options, input=text, timeout=60, check=True)
    return done.stdout.split()


def hello(name: str) -> bytes:
    """What a client of TLS sends first."""
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


@dataclass(frozen=True, slots=True)
class Office:
    """A network that the host has no way to: a namespace with a server and a name server of its own."""

    path: str
    resolv_conf: Path

    def toml(self) -> str:
        """The network, as a policy names it."""
        return f'office = {{ netns = "{self.path}", resolv_conf = "{self.resolv_conf}" }}'
