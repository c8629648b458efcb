"""Policies that change while guests run: calls, connections, datagrams; a broken file changes nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from policykit import EMBEDDED, GUESTS, change, complaints, written
from world.namespaces import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from world.internet import World
    from world.runner import Guest, Running

guests = pytest.mark.parametrize("guest", GUESTS, indirect=True)
embedded = pytest.mark.parametrize("guest", EMBEDDED, indirect=True)

# Does what each line of its input says: open HOST PORT (a connection that stays), try HOST PORT, send HOST PORT (UDP),
# echo N (through connection N), serve PORT, take (accept a connection that stays), tell N. One answer for each.
HANDS = """
import errno, json, socket, sys
kept, datagrams = [], socket.socket(type=socket.SOCK_DGRAM)
datagrams.settimeout(8)
def attempt(words):
    if words[0] in ("open", "try"):
        sock = socket.create_connection((words[1], int(words[2])), timeout=8)
        kept.append(sock) if words[0] == "open" else sock.close()
        return "ok"
    if words[0] == "send":
        datagrams.sendto(b"x", (words[1], int(words[2])))
        return datagrams.recv(9).decode()
    if words[0] == "serve":
        kept.append(socket.create_server(("0.0.0.0", int(words[1]))))
        return "ok"
    if words[0] == "take":
        kept.append(kept[0].accept()[0])
        return "ok"
    sock = kept[int(words[1])]
    if words[0] == "tell":
        return sock.send(b"hello")
    sock.sendall(b"hello")
    return sock.recv(5).decode()
for line in sys.stdin:
    try:
        said = attempt(line.split())
    except OSError as error:
        said = errno.errorcode.get(error.errno, str(error))
    print(json.dumps(said), flush=True)
"""


class Hands:
    """A program in a guest that does one thing after the other."""

    def __init__(self, running: Running, to: int) -> None:
        self.running = running
        self._to = to
        self._asked = 0

    def __call__(self, words: str) -> Any:
        os.write(self._to, f"{words}\n".encode())
        self._asked += 1

        def answered() -> bool:
            assert self.running.process.poll() is None, self.running.stderr
            return self.running.stdout.count("\n") >= self._asked

        eventually(answered, 30, words)
        return json.loads(self.running.stdout.splitlines()[self._asked - 1])


@contextlib.contextmanager
def hands(guest: Guest, options: tuple[str, ...]) -> Iterator[Hands]:
    read_end, write_end = os.pipe()
    try:
        argv = [guest.world.python, "-c", HANDS]
        running = guest.popen(argv, options=options, stdin=read_end)
        os.close(read_end)
        yield Hands(running, write_end)
    finally:
        os.close(write_end)
    running.wait(20)


ALL = '[[rule]]\nallow = "public"\n'


@guests
def test_another_policy_takes_effect_and_connections_stay(guest: Guest) -> None:
    world = guest.world
    with hands(guest, written(guest, ALL)) as do:
        assert do(f"open {world.web4} 7") == "ok"
        assert do(f"try {world.web4} 80") == "ok"
        assert do(f"try {world.web4} 80") == "ok"  # from the cache, where there is one
        change(guest, do.running, '[[rule]]\nallow = "198.51.100.11"\n')
        assert do(f"try {world.web4} 80") == "EACCES"
        assert do("try 198.51.100.11 80") == "ok"
        assert do("echo 0") == "hello"
        change(guest, do.running, "[[rule]]\nalow = 1\n")
        assert "unknown key 'alow'" in complaints(guest, do.running)
        assert do(f"try {world.web4} 80") == "EACCES"
        assert do("try 198.51.100.11 80") == "ok"
        change(guest, do.running, ALL)
        assert do(f"try {world.web4} 80") == "ok"
        assert do("echo 0") == "hello"


@guests
def test_connections_end_if_the_policy_says_so(guest: Guest) -> None:
    world = guest.world
    with hands(guest, written(guest, ALL)) as do:
        assert do(f"open {world.web4} 7") == "ok"
        assert do("open 198.51.100.11 7") == "ok"
        assert [do("echo 0"), do("echo 1")] == ["hello", "hello"]
        text = 'close_on_reload = true\n[[rule]]\nallow = "198.51.100.11"\n'
        change(guest, do.running, text)
        eventually(lambda: do("echo 0") != "hello", 20, "the end of what is forbidden")
        assert do("echo 1") == "hello"
        assert do("echo 0") in ("", "EPIPE", "ECONNRESET")


def two_clients(
    stack: contextlib.ExitStack, world: World, do: Hands, port: int, first: int
) -> tuple[list[socket.socket], Callable[[int], bytes]]:
    """Of the server at this port, on its own host and on another, whose numbers are `first` and the next; and what
    one of them is told."""
    clients = []
    for space in (world.host, world.peer):
        clients.append(stack.enter_context(space.connect(world.host.addr4, port)))
        assert do("take") == "ok"

    def hear(at: int) -> bytes:
        assert do(f"tell {at + first}") == 5
        return clients[at].recv(5, socket.MSG_WAITALL)

    assert [hear(0), hear(1)] == [b"hello"] * 2
    return clients, hear


@guests
def test_clients_are_sent_away_if_the_policy_says_so(guest: Guest) -> None:
    """Those whom it does not admit; others stay, and so do all where it does not say so."""
    world, port = guest.world, guest.port()
    rule = f'[[rule]]\nallow = ["listen:any:{port}", "accept:%s:{port}"]\n'
    with contextlib.ExitStack() as stack, hands(guest, written(guest, rule % "any")) as do:
        assert do(f"serve {port}") == "ok"
        clients, hear = two_clients(stack, guest.world, do, port, 1)
        change(guest, do.running, rule % world.host.addr4)
        assert [hear(0), hear(1)] == [b"hello"] * 2
        change(guest, do.running, f"close_on_reload = true\n{rule % world.host.addr4}")
        with contextlib.suppress(ConnectionResetError):
            assert clients[1].recv(5) == b""
        assert hear(0) == b"hello"
        with pytest.raises(ConnectionError), world.peer.connect(world.host.addr4, port) as late:
            assert late.recv(1) == b"?"


@guests
def test_the_example_of_a_web_service_sends_away_whom_it_forbids(guest: Guest) -> None:
    """A second proxy, which the file admitted before; the one that it names stays, and the database does."""
    world, port = guest.world, guest.port()
    example = Path(__file__).parents[2] / "docs" / "howto" / "policies" / "web-service.toml"
    text = example.read_text().replace(":18080", f":{port}").replace(":18081", f":{port + 1}")
    text = text.replace("10.20.0.5:5432", f"{world.private4}:7")
    text = text.partition("[[expect]]")[0]
    own = f'"accept:{world.host.addr4}:{port}"'
    assert own in text
    assert text.count("close_on_reload = true") == 1
    before = text.replace(own, f'{own}, "accept:{world.peer.addr4}:{port}"')
    with contextlib.ExitStack() as stack, hands(guest, written(guest, before)) as do:
        assert do(f"serve {port}") == "ok"
        assert do(f"open {world.private4} 7") == "ok"
        clients, hear = two_clients(stack, guest.world, do, port, 2)
        change(guest, do.running, text)
        with contextlib.suppress(ConnectionResetError):
            assert clients[1].recv(5) == b""
        assert hear(0) == b"hello"
        assert do("echo 1") == "hello"
        with pytest.raises(ConnectionError), world.peer.connect(world.host.addr4, port) as late:
            assert late.recv(1) == b"?"
        change(guest, do.running, text.replace(f"{world.private4}:7", f"{world.private4}:8"))
        eventually(lambda: do("echo 1") != "hello", 20, "the end of what is forbidden")
        assert hear(0) == b"hello"


@embedded
@pytest.mark.slow
def test_datagrams_are_decided_again(guest: Guest) -> None:
    world = guest.world
    with hands(guest, written(guest, ALL)) as do:
        assert do(f"send {world.web4} 7") == "x"
        change(guest, do.running, '[[rule]]\nallow = "198.51.100.11"\n')
        # As a UDP socket tells: at this call or the next one.
        eventually(lambda: do(f"send {world.web4} 7") in ("EACCES", "timed out"), 20, "a refusal")
        change(guest, do.running, ALL)
        eventually(lambda: do(f"send {world.web4} 7") == "x", 30, "an answer")


@pytest.mark.parametrize("guest", [pytest.param("ring", marks=pytest.mark.ring)], indirect=True)
def test_a_backend_loads_its_policy_at_sighup(guest: Guest) -> None:
    with hands(guest, written(guest, ALL)) as do:
        assert do("try 198.51.100.11 80") == "ok"
        (backend,) = guest.backends()
        os.kill(backend.pid, signal.SIGHUP)
        eventually(lambda: "loaded anew" in backend.stderr, 30, "a reload")
        assert do("try 198.51.100.11 80") == "ok"


@guests
def test_what_a_name_led_to_is_judged_by_the_policy_of_now(guest: Guest) -> None:
    """Where rules by address decide, a name may lead anywhere; a rule by name that comes later opens no private one."""
    world = guest.world
    with hands(guest, written(guest, '[[rule]]\nallow = ["public", "private"]\n')) as do:
        assert do("try private.test 80") == "ok"
        assert do("try web.test 80") == "ok"
        change(guest, do.running, '[[rule]]\nallow = ["private.test", "web.test"]\n')
        assert do(f"try {world.private4} 80") == "EACCES"
        assert do(f"try {world.web4} 80") == "ok"


@embedded
def test_hooks_come_and_go_with_the_file(guest: Guest) -> None:
    """A class that cannot be had is an error as any other; a file of hooks that changed is run anew."""
    hooks = guest.directory / "hooks.py"
    head = "from xensock.policy.hooks import deny\nclass Hooks:\n    def connect(self, call):\n"
    hooks.write_text(f"{head}        return deny()\n")
    named = f'{ALL}[hooks]\nclass = "hooks.py:Hooks"\ntimeout = 20\n'
    with hands(guest, written(guest, ALL)) as do:
        assert do("try 198.51.100.11 80") == "ok"
        change(guest, do.running, named)
        assert do("try 198.51.100.11 80") == "EACCES"
        change(guest, do.running, named.replace(":Hooks", ":Else"))
        assert "no class Else" in do.running.stderr
        assert do("try 198.51.100.11 80") == "EACCES"
        hooks.write_text(f"{head}        return None if call.port == 80 else deny()\n")
        change(guest, do.running, named)
        assert do("try 198.51.100.11 80") == "ok"
        assert do("try 198.51.100.11 7") == "EACCES"
        change(guest, do.running, ALL)
        assert do("try 198.51.100.11 7") == "ok"


@embedded
def test_a_call_that_waits_for_a_hook_is_judged_by_the_policy_of_now(guest: Guest) -> None:
    asked, go = guest.directory / "asked", guest.directory / "go"
    (guest.directory / "hooks.py").write_text(f"""
import asyncio, pathlib
from xensock.policy.hooks import allow
class Hooks:
    async def connect(self, call):
        pathlib.Path({str(asked)!r}).touch()
        while not pathlib.Path({str(go)!r}).exists():
            await asyncio.sleep(0.01)
        return allow()
""")
    named = f'{ALL}[hooks]\nclass = "hooks.py:Hooks"\ntimeout = 60\n'
    said: list[str] = []
    with hands(guest, written(guest, named)) as do:
        waiting = threading.Thread(target=lambda: said.append(do("try 198.51.100.11 80")))
        waiting.start()
        eventually(asked.exists, 30, "the hook is asked")
        change(guest, do.running, '[[rule]]\nallow = "198.51.100.10"\n')
        go.touch()
        waiting.join(60)
        assert said == ["EACCES"]
        assert do("try 198.51.100.10 80") == "ok"
