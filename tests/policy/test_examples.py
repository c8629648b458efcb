"""The policies that ship as examples: their cases hold, and in guests they do what they say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from policykit import EMBEDDED, hello, reached, said, written
from xensock.cli.main import main

if TYPE_CHECKING:
    from world.runner import Guest

EXAMPLES = Path(__file__).parents[2] / "docs" / "howto" / "policies"
embedded = pytest.mark.parametrize("guest", EMBEDDED, indirect=True)


def example(guest: Guest, name: str, *words: tuple[str, str]) -> tuple[str, ...]:
    """The options for an example in which hosts and programs of the world stand for its own."""
    text = (EXAMPLES / f"{name}.toml").read_text()
    for old, new in words:
        assert old in text
        text = text.replace(old, new)
    options = written(guest, text, f"{name}.toml")
    assert main(["policy", "test", options[1]]) == 0
    return options


@pytest.mark.parametrize("path", sorted(EXAMPLES.iterdir()), ids=lambda path: path.stem)
def test_cases_hold(path: Path) -> None:
    assert main(["policy", "check", str(path)]) == 0
    assert main(["policy", "test", str(path)]) == 0


@embedded
def test_coding_agent(guest: Guest) -> None:
    python = os.path.realpath(guest.world.python)
    options = example(
        guest,
        "coding-agent",
        ("api.example.com:443", "alias.test:7"),
        ("api.example.com:80", "alias.test:80"),
        ("packages.example.org", "web.test"),
        (":443", ":80"),
        ("forge.example.net:22", "intra.example.test:80"),
        ("/usr/bin/ssh", python),
    )
    places = (
        "web.test:80",
        "web.test:7",
        "intra.example.test:80",
        "v4only.test:80",
        "198.51.100.11:80",
    )
    found = reached(guest, *places, options=options)
    assert found == ["ok", "EACCES", "ok", "NONAME", "EACCES"]
    # What is said to the model's API names it; the same address under another name is not it.
    lines = (hello("alias.test"), hello("web.test"), b"GET / HTTP/1.1\r\nHost: alias.test\r\n\r\n")
    found = said(guest, "alias.test:7", options, *lines)
    assert found == ["True", "ECONNRESET", "ECONNRESET"]
    # Another program does not reach the forge.
    argv = ["curl", "-sS", "--max-time", "20", "http://intra.example.test/"]
    assert guest.run(argv, options=options, timeout=60).returncode == 7


@embedded
def test_ci_job(guest: Guest) -> None:
    world = guest.world
    options = example(
        guest,
        "ci-job",
        ("192.0.2.80:443", f"{world.web4}:7"),
        ("registry.example.org", "silent.test"),
        ("artifacts.example.com", "web.test"),
        (":443", ":7"),
        (":8080", ":80"),
        ("10.20.0.5", world.private4),
    )
    # The registry itself never answers; its mirror does.
    places = (
        "silent.test:7",
        "web.test:7",
        f"{world.private4}:80",
        f"{world.private4}:7",
        "v4only.test:7",
    )
    found = reached(guest, *places, options=options)
    assert found == ["ok", "ok", "ok", "EACCES", "NONAME"]


@embedded
def test_web_service(guest: Guest) -> None:
    world, port = guest.world, guest.port()
    options = example(
        guest, "web-service", (":18080", f":{port}"), ("10.20.0.5:5432", f"{world.private4}:80")
    )
    serve = f"""
import socket
socket.create_connection(("{world.private4}", 80), timeout=20).close()
with socket.create_server(("0.0.0.0", {port})) as server:
    client, address = server.accept()
    client.sendall(address[0].encode())
"""
    ask = f"""
import socket
try:
    print(socket.create_connection(("203.0.113.10", {port}), timeout=20).recv(20))
except ConnectionResetError:
    print("reset")
"""
    with guest.popen([world.python, "-c", serve], options=options, listens=port) as running:
        assert world.peer.run([world.python, "-c", ask]).stdout == "reset\n"
        assert world.host.run([world.python, "-c", ask]).stdout == "b'203.0.113.10'\n"
        assert running.wait(30) == 0
    assert reached(guest, "198.51.100.11:80", options=options) == ["EACCES"]


@embedded
def test_database_client(guest: Guest) -> None:
    world = guest.world
    words = (
        ("db.example.com:22", "private.test:7"),
        ("10.20.0.5:22", f"{world.private4}:7"),
        ("db.example.com", "private.test"),
        ("10.20.0.5", world.private4),
        (":5432", ":80"),
        ("/usr/bin/psql", os.path.realpath(world.python)),
    )
    options = example(guest, "database-client", *words)
    places = ("private.test:80", "private.test:7", "web.test:80")
    assert reached(guest, *places, options=options) == ["ok", "EACCES", "NONAME"]
    backup = ["curl", "-sS", "--max-time", "20", "-o", "page", "http://private.test/address"]
    assert guest.run(backup, options=options, timeout=60).returncode == 7
    labelled = (*options, "--label", "job=backup")
    assert guest.run(backup, options=labelled, timeout=60).returncode == 0
