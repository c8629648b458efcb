"""Hooks: they allow, deny and redirect; what they do wrong is a refusal; a slow one stalls nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from policykit import GUESTS, peers, reached, written

if TYPE_CHECKING:
    from world.runner import Guest

guests = pytest.mark.parametrize("guest", GUESTS, indirect=True)
EXAMPLES = Path(__file__).parents[2] / "docs" / "howto" / "hooks"
OPEN = """
[[rule]]
allow = ["public", "listen:any"]
"""


def hooked(
    guest: Guest, body: str, rules: str = OPEN, cls: str = "Hooks", timeout: float = 20
) -> tuple[str, ...]:
    """The options for a policy with the hooks of this class body."""
    head = "import asyncio, threading, time\nfrom xensock.policy.hooks import *\n"
    head += "from xensock.policy.hooks import allow, deny, redirect\n"
    (guest.directory / "hooks.py").write_text(f"{head}class Hooks:\n{body}")
    return written(guest, f'{rules}\n[hooks]\nclass = "hooks.py:{cls}"\ntimeout = {timeout}\n')


def example(
    guest: Guest, name: str, rules: str, words: tuple[tuple[str, str], ...] = ()
) -> tuple[str, ...]:
    """The options for a policy with hooks of an example, in which words stand for others."""
    file, _ = name.split(":")
    text = (EXAMPLES / file).read_text()
    for old, new in words:
        text = text.replace(old, new)
    (guest.directory / file).write_text(text)
    return written(guest, f'{rules}\n[hooks]\nclass = "{name}"\ntimeout = 20\n')


@guests
def test_hooks_allow_deny_and_redirect(guest: Guest) -> None:
    world = guest.world
    body = f"""
    def resolve(self, call):
        return deny("no") if call.host == "v6only.test" else allow()
    async def connect(self, call):
        if call.names[:1] == ("web.test",):
            return None if call.allowed else allow()
        if "v4only.test" in call.names:
            return redirect("{world.web4}:7")
        if "intra.example.test" in call.names:
            return deny("inside")
"""
    options = hooked(guest, body, rules='[[rule]]\nallow = ["intra.example.test:80"]\n')
    places = ("web.test:80", "v4only.test:1234", "intra.example.test:80", "v6only.test:80")
    found = peers(guest, *places, options=options)
    assert found[1:] == [["ok", "198.51.100.11"], ["EACCES", ""], ["NONAME", ""]]
    assert found[0][0] == "ok"
    calls = {call["target"]: call for call in guest.calls if call["verb"] == "connect"}
    refused = calls["198.51.100.12:80"]
    assert refused["rule"] == "hook Hooks.connect: inside"
    if guest.datapath != "ring":  # whose rules are the backend's, written elsewhere
        assert refused["source"].endswith(":5")
    # What --deny refuses no hook opens.
    options = (*options, "--deny", "web.test:80")
    assert reached(guest, "web.test:80", options=options) == ["EACCES"]


@guests
def test_what_hooks_do_wrong_is_a_refusal(guest: Guest) -> None:
    body = """
    def connect(self, call):
        if call.port == 80:
            raise KeyError("x")
        if call.port == 7:
            return True
        if call.port == 8:
            time.sleep(1000)
"""
    for timeout, places in ((20, ("web.test:80", "web.test:7")), (0.5, ("web.test:8",))):
        found = reached(guest, *places, options=hooked(guest, body, timeout=timeout))
        late = guest.datapath == "ring" and timeout == 0.5
        assert set(found) == {"EHOSTUNREACH" if late else "EACCES"}
    rules = [c["rule"] for c in guest.calls if c["verb"] == "connect"]
    assert [rule.removeprefix("hook Hooks.connect: ") for rule in dict.fromkeys(rules)] == [
        "KeyError: 'x'",
        "it answers bool, not an Answer",
        # Over rings the guest was told before that the connection is under way; the backend's trace has the rest.
        "left to backend" if guest.datapath == "ring" else "no answer within 0.5 s",
    ]


# What a hook does wrong, of each kind of call.
WRONG = {
    "raises": ('raise KeyError("x")', "KeyError: 'x'"),
    "says something else": ('return "yes"', "it answers str, not an Answer"),
    "never ends": ("threading.Event().wait()", "no answer within 0.5 s"),
    "never ends, async": ("await asyncio.sleep(1000)", "no answer within 0.5 s"),
}


@guests
@pytest.mark.parametrize("wrong", WRONG)
def test_names_listeners_and_clients_are_refused_where_a_hook_fails(
    guest: Guest, wrong: str
) -> None:
    """None of them as the rules say, which allow them."""
    does, why = WRONG[wrong]
    word = "async def" if "await" in does else "def"
    shut, open_ = guest.port(), guest.port()
    body = f"""
    {word} resolve(self, call):
        {does}
    {word} listen(self, call):
        if call.port == {shut}:
            {does}
    {word} accept(self, call):
        {does}
"""
    code = f"""
import errno, socket
try:
    print(socket.gethostbyname("web.test"))
except socket.gaierror:
    print("NONAME", flush=True)
for port in ({shut}, {open_}):
    try:
        server = socket.create_server(("", port))
        print("listening", flush=True)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
print("accepted", server.accept())
"""
    options = hooked(guest, body, timeout=0.5 if "ends" in wrong else 20)
    argv = [guest.world.python, "-c", code]
    with guest.popen(argv, options=options, listens=open_, timeout=40) as running:
        host = guest.world.host.addr4
        with (
            pytest.raises(ConnectionResetError),  # of connect(2) already, or of what comes after
            guest.world.peer.connect(host, open_, timeout=30) as client,
        ):
            assert client.recv(1) == b"?"
        assert running.stdout.split() == ["NONAME", "EACCES", "listening"]
    if guest.datapath == "ring":
        return  # whose backend records clients
    rules = {call["verb"]: call["rule"] for call in guest.calls if call["decision"] == "deny"}
    verbs = ("resolve", "bind", "accept")
    named = {verb: "listen" if verb == "bind" else verb for verb in verbs}
    assert {verb: rules[verb] for verb in verbs} == {
        verb: f"hook Hooks.{named[verb]}: {why}" for verb in verbs
    }


@guests
def test_answers_are_not_remembered(guest: Guest) -> None:
    body = """
    count = 0
    def connect(self, call):
        self.count += 1
        return deny() if self.count % 2 == 0 else None
"""
    found = reached(guest, *["198.51.100.11:80"] * 6, options=hooked(guest, body))
    assert found == ["ok", "EACCES"] * 3


@pytest.mark.alone
@guests
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_slow_hook_stalls_nobody_else(guest: Guest, kind: str) -> None:
    """One thread waits for a hook that answers only when the others' calls were answered."""
    wait = "await asyncio.sleep(0.01)" if kind == "async def" else "time.sleep(0.01)"
    body = f"""
    others = 0
    {kind} connect(self, call):
        if call.port == 7:
            self.others += 1
            return None
        while self.others < 20:
            {wait}
        return deny("late")
    {kind} resolve(self, call):
        while call.host == "v4only.test" and self.others < 20:
            {wait}
"""
    code = """
import errno, socket, threading
def slow():
    try:
        socket.create_connection(("198.51.100.11", 80), timeout=60)
    except OSError as error:
        print(errno.errorcode[error.errno])
def named():
    print(socket.gethostbyname("v4only.test"))
waiting = [threading.Thread(target=each) for each in (slow, named)]
for thread in waiting:
    thread.start()
for _ in range(20):
    with socket.create_connection(("web.test", 7), timeout=60) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
for thread in waiting:
    thread.join()
"""
    argv = [guest.world.python, "-c", code]
    done = guest.run(argv, options=hooked(guest, body, timeout=60), check=True, timeout=90)
    late = "EHOSTUNREACH" if guest.datapath == "ring" else "EACCES"
    assert sorted(done.stdout.split()) == ["198.51.100.11", late]


@guests
def test_datagrams_and_interrupted_calls(guest: Guest) -> None:
    """Flows are asked about; a signal ends the wait of connect(2) as natively."""
    world = guest.world
    body = """
    async def connect(self, call):
        if call.protocol == "udp":
            return deny() if call.host.endswith(".11") else None
        await asyncio.sleep(30)
"""
    code = f"""
import errno, signal, socket
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.settimeout(20)
    sock.sendto(b"x", ("{world.web4}", 7))
    print(sock.recv(1).decode())
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.settimeout(20)
    sock.connect(("198.51.100.11", 7))
    try:
        sock.send(b"x")
        print(sock.recv(1))
    except OSError as error:
        print(errno.errorcode[error.errno])
class Alarm(Exception):
    pass
def ring(*args):
    raise Alarm
signal.signal(signal.SIGALRM, ring)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    socket.create_connection(("{world.web4}", 80))
except Alarm:
    print("alarm")
"""
    argv = [world.python, "-c", code]
    done = guest.run(argv, options=hooked(guest, body, timeout=60), check=True, timeout=60)
    first, refused, last = done.stdout.split()
    assert (first, last) == ("x", "alarm")
    assert refused in ("EACCES", "EHOSTUNREACH")


@guests
def test_a_socket_that_does_not_wait_stays_so(guest: Guest) -> None:
    """Whoever asks about its call must not change the flags that it shares with the program's descriptor."""
    code = f"""
import os, socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    with socket.socket(type=kind) as sock:
        sock.setblocking(False)
        sock.connect_ex(("{guest.world.web4}", 7))
        print(os.get_blocking(sock.fileno()))
"""
    body = """
    async def connect(self, call):
        await asyncio.sleep(0.01)
"""
    argv = [guest.world.python, "-c", code]
    assert guest.run(argv, options=hooked(guest, body), check=True).stdout.split() == ["False"] * 2


@guests
def test_example_budget(guest: Guest) -> None:
    options = example(guest, "budget.py:Budget", OPEN)
    places = (
        "web.test:80",
        "v4only.test:80",
        "web.test:7",
        "198.51.100.12:80",
        "[2001:db8:20::11]:80",
    )
    found = reached(
        guest, *(place.replace("[", "").replace("]", "") for place in places), options=options
    )
    assert found == ["ok", "ok", "ok", "ok", "EACCES"]


@guests
def test_example_mirror(guest: Guest) -> None:
    world = guest.world
    words = (
        ("198.51.100.", "203.0.113.10"),
        ("192.0.2.80:80", f"{world.web4}:7"),
        ("packages.example.com", "v4only.test"),
    )
    options = example(guest, "mirror.py:Mirror", OPEN, words)
    places = ("v4only.test:443", "a-name-that-carries-much-data.test:80", "web.test:80")
    assert reached(guest, *places, options=options) == ["ok", "NONAME", "ok"]
    port = guest.port()
    assert port >= 10_000
    code = f"""
import socket
try:
    socket.create_server(("", 9123))
except OSError as error:
    print(error.errno, flush=True)
with socket.create_server(("0.0.0.0", {port})) as server:
    client, address = server.accept()
    client.sendall(address[0].encode())
"""
    argv = [world.python, "-c", code]
    with guest.popen(argv, options=options, listens=port) as running:
        ask = f"""
import socket
try:
    print(socket.create_connection(("203.0.113.10", {port}), timeout=20).recv(20))
except ConnectionResetError:
    print("reset")
"""
        assert world.peer.run([world.python, "-c", ask]).stdout == "reset\n"
        assert "203.0.113.10" in world.host.run([world.python, "-c", ask]).stdout
        running.wait(30)
    assert running.stdout == "13\n"
