"""--ask: a person at the terminal decides about destinations that no rule is about."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest

from world.fixtures import only

from .terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.internet import World
    from world.runner import Guest

pytestmark = pytest.mark.parametrize("guest", only("direct", "relay"), indirect=True)

REACH = """
import errno, socket, sys
for place in sys.argv[1:]:
    host, port = place.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=60).close()
        print("reached", place, flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], place, flush=True)
"""


@pytest.fixture
def terminal(world: World, guest: Guest) -> Iterator[Terminal]:
    with Terminal(world, guest) as shell:
        yield shell


def start(terminal: Terminal, code: str, *words: str, options: tuple[str, ...] = ()) -> None:
    guest = terminal.guest
    argv = [guest.world.python, "-c", code, *words]
    path = guest.directory / "run.sh"
    path.write_text(shlex.join(guest.command(argv, ("--ask", *options))))
    terminal.line(f"sh {path}")


def test_once_always_and_never(terminal: Terminal) -> None:
    web, other = "web.test:80", "198.51.100.11:80"
    start(terminal, REACH, web, web, other, other, "web.test:7", "web.test:7")
    terminal.expect(f"wants to reach {web}/tcp at ")
    terminal.line("o")
    terminal.expect(f"reached {web}")
    terminal.expect(f"wants to reach {web}/tcp at ")
    terminal.line("a")
    terminal.expect(f"reached {web}")
    terminal.expect(f"wants to reach {other}: ")
    terminal.line("never")
    terminal.expect(f"EACCES {other}")
    terminal.expect(f"EACCES {other}")
    terminal.expect("wants to reach web.test:7/tcp")
    terminal.line("what?")
    terminal.expect("[n]ever? ")
    terminal.line("always")
    terminal.expect("reached web.test:7")
    terminal.expect("reached web.test:7")
    assert terminal.status() == 0


def test_other_calls_go_on_meanwhile_and_a_key_ends_the_program(terminal: Terminal) -> None:
    code = """
import signal, socket, threading
def unknown():
    socket.create_connection(("198.51.100.11", 80))
threading.Thread(target=unknown, daemon=True).start()
for _ in range(5):
    socket.create_connection(("web.test", 7), timeout=60).close()
print("others are done", flush=True)
signal.pause()
"""
    start(terminal, code, options=("--allow", "web.test:7"))
    terminal.expect("others are done")
    terminal.type("\x03")
    assert terminal.status() == 130


def test_what_was_allowed_is_learnt(terminal: Terminal) -> None:
    path = terminal.guest.directory / "learnt.toml"
    places = ("web.test:80", "web.test:7")
    start(terminal, REACH, *places, options=("--learn", str(path), "--deny", "192.0.2.1"))
    for word in ("once", "never"):
        terminal.expect("wants to reach web.test:")
        terminal.line(word)
    assert terminal.status() == 0
    assert '\nallow = "web.test:80"\n' in path.read_text()
