"""--learn: what real programs did becomes the policy under which they run again, and others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policykit import EMBEDDED, GUESTS, reached, written

if TYPE_CHECKING:
    from pathlib import Path

    from world.runner import Guest

guests = pytest.mark.parametrize("guest", GUESTS, indirect=True)
embedded = pytest.mark.parametrize("guest", EMBEDDED, indirect=True)
CURL = ["curl", "-sS", "--max-time", "20"]


def learnt(guest: Guest, argv: list[str], *options: str) -> tuple[str, tuple[str, ...]]:
    """Run a program and learn; the policy, and the options for it."""
    path: Path = guest.directory / "learnt.toml"
    guest.run(argv, options=("--learn", str(path), *options), check=True, timeout=60)
    return path.read_text(), ("--policy", str(path))


@guests
def test_curl_runs_again_and_reaches_nothing_else(guest: Guest) -> None:
    argv = [*CURL, "http://web.test/address"]
    text, options = learnt(guest, argv)
    assert '\nallow = "web.test:80"\n' in text
    assert "198.51.100.10" not in text
    again = guest.run(argv, options=options, check=True, timeout=60)
    assert again.stdout.strip()
    other = guest.run([*CURL, "http://intra.example.test/"], options=options, timeout=60)
    assert other.returncode == 6, other.stderr  # it could not resolve the host
    places = ("web.test:7", "198.51.100.11:80")
    assert reached(guest, *places, options=options) == ["EACCES", "EACCES"]


@embedded
def test_all_kinds_of_calls(guest: Guest) -> None:
    world = guest.world
    code = f"""
import socket
def tcp(host, port):
    with socket.create_connection((host, port), timeout=8) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
tcp("web.test", 7)
tcp("private.test", 7)
tcp("198.51.100.11", 7)
socket.getaddrinfo("v6only.test", None)
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.settimeout(8)
    sock.sendto(b"x", ("{world.web4}", 7))
    assert sock.recv(1) == b"x"
for port in (18123, 0):
    with socket.create_server(("", port)):
        pass
with socket.create_server(("127.0.0.1", 0)) as own, socket.create_connection(own.getsockname()):
    pass
"""
    argv = [world.python, "-c", code]
    text, options = learnt(guest, argv)
    for rule in (
        "web.test:7",
        "private.test:7",
        f"{world.private4}:7",
        "198.51.100.11:7",
        "v6only.test:53/udp",
        "web.test:7/udp",
        "listen:any:18123",
        "listen:any:1024-65535",
    ):
        assert f'"{rule}"' in text, text
    guest.run(argv, options=options, check=True, timeout=60)
    places = ("web.test:80", "private.test:80", "v6only.test:7", "127.0.0.1:18999")
    found = reached(guest, *places, options=options)
    assert found == ["EACCES", "EACCES", "EACCES", "ECONNREFUSED"]


@embedded
def test_what_was_refused_stays_so(guest: Guest) -> None:
    code = """
import socket
for host in ("web.test", "intra.example.test"):
    try:
        socket.create_connection((host, 80), timeout=8).close()
    except OSError:
        pass
"""
    argv = [guest.world.python, "-c", code]
    rules = written(guest, '[[rule]]\nallow = "web.test"\n')
    text, options = learnt(guest, argv, *rules)
    assert '"web.test:80"' in text
    assert "# Refused" in text
    assert "intra.example.test" in text
    assert reached(guest, "intra.example.test:80", options=options) == ["NONAME"]
