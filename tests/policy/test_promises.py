"""Non-blocking connects by another backend that hangs: they look as natively towards a host that does not answer."""

from __future__ import annotations

import errno
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from policykit import EMBEDDED, GUESTS, change, hanging
from world.namespaces import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from world.runner import Guest, Running

embedded = pytest.mark.parametrize("guest", EMBEDDED, indirect=True)

HEAD = """
import errno, json, os, select, socket, sys, time
web, beside = sys.argv[1:3]
def name(number):
    return errno.errorcode.get(number, "ok" if number == 0 else str(number))
def outcome(call, *args):
    try:
        return call(*args) or "ok"
    except OSError as error:
        return name(error.errno)
def start(port):
    sock = socket.socket()
    sock.setblocking(False)
    return sock, name(sock.connect_ex((web, port)))
def events(sock, seconds):
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT)
    found = poll.poll(seconds * 1000)
    return found[0][1] if found else 0
def reach(host):
    with socket.create_connection((host, 7), timeout=60) as sock:
        sock.sendall(b"hello")
        return sock.recv(5).decode()
def say(*what):
    print(json.dumps(what), flush=True)
print("warm", reach(web), flush=True)
sys.stdin.readline()
"""

# What a program sees of a connect that nobody answers.
LOOK = """
def look(sock, first, port):
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLOUT | select.EPOLLET)
        epoll.poll(0)
        return [
            first,
            name(sock.connect_ex((web, port))),
            events(sock, 0.3),
            epoll.poll(0),
            name(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)),
            outcome(sock.getpeername),
            outcome(sock.recv, 1),
            outcome(sock.send, b"x"),
            os.get_blocking(sock.fileno()),
        ]
"""


def lines(running: Running) -> list[Any]:
    return [json.loads(line) for line in running.stdout.splitlines() if line.startswith("[")]


def told(
    guest: Guest,
    script: str,
    meanwhile: Callable[[Running, Callable[[], None]], object],
    via: str = '"lab"',
    more: tuple[str, ...] = (),
) -> dict[str, list[Any]]:
    """What a script says, by its first words. Once it "waits" something is done, with what lets the backend go on."""
    with hanging(guest, HEAD + script, via, more) as (running, go, resume):
        go()
        eventually(lambda: ["waits"] in lines(running), 60, "what comes before")
        meanwhile(running, resume)
        assert running.wait() == 0, running.stderr
        return {line[0]: line[1:] for line in lines(running)}


def resumed(_: Running, resume: Callable[[], None]) -> None:
    resume()


def killed(guest: Guest) -> Callable[..., None]:
    return lambda *_: guest.backends()[0].process.kill()


@pytest.mark.parametrize("guest", GUESTS, indirect=True)
def test_it_looks_as_towards_a_host_that_is_silent(guest: Guest) -> None:
    """The native half: a listener of the program's own whose queue is full."""
    script = (
        LOOK
        + """
begun = time.monotonic()
sock, first = start(7)
took = time.monotonic() - begun
say("took", took)
say("seen", *look(sock, first, 7))
held = web
full = socket.socket()
full.bind(("127.0.0.1", 0))
full.listen(0)
web, port = full.getsockname()
fillers = []
while True:
    filler, _ = start(port)
    if not events(filler, 0.2) & select.POLLOUT:
        break
    fillers.append(filler)
silent, first = start(port)
say("native", *look(silent, first, port))
say("waits")
web = held
seen = [events(sock, 30), name(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))]
seen += [sock.getpeername() == (web, 7), name(sock.connect_ex((web, 7)))]
sock.send(b"late")
events(sock, 10)
select.select([sock], [], [], 10)
say("end", *seen, name(sock.connect_ex((web, 7))), sock.recv(9).decode())
"""
    )
    found = told(guest, script, resumed)
    assert found["took"][0] < 2
    assert found["seen"] == found["native"]
    assert found["seen"][:3] == ["EINPROGRESS", "EALREADY", 0]
    assert found["end"] == [4, "ok", True, "ok", "EISCONN", "late"]
    calls = [c for c in guest.calls if c["verb"] == "connect" and c["target"].endswith(":7")]
    late = [c for c in calls if c["duration"] > 0.3]
    if guest.datapath != "ring":
        (call,) = late
        assert (call["decision"], call["datapath"]) == ("allow", "ring")
        assert call["error"] == errno.EINPROGRESS
        assert call["rule"].endswith(" via lab")


@embedded
def test_a_refusal_comes_late_and_is_recorded_once(guest: Guest) -> None:
    script = """
sock, first = start(8)
gone, other = start(9)
gone.close()
say("begun", first, other)
time.sleep(1.2)
say("waits")
seen = events(sock, 30) & (select.POLLERR | select.POLLHUP)
say("end", bool(seen), name(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
again, error = start(8)
say("again", error)
"""
    found = told(guest, script, resumed)
    assert found["begun"] == ["EINPROGRESS", "EINPROGRESS"]
    # As natively of a firewall that prohibits: IPv4 has no other word for it.
    assert found["end"] == [True, "EHOSTUNREACH"]
    assert found["again"] == ["EACCES"]
    calls = [c for c in guest.calls if c["verb"] == "connect"]
    denied = [c for c in calls if c["target"].endswith(":8")]
    assert [(c["decision"], c["error"]) for c in denied] == [("deny", errno.EACCES)] * 2
    assert denied[0]["duration"] > 1 > denied[1]["duration"]
    assert denied[0]["program"] == denied[1]["program"] != "?"
    # Who gave up before hears of no refusal, nor does the record.
    (left,) = [c for c in calls if c["target"].endswith(":9")]
    assert (left["decision"], left["error"]) == ("allow", errno.EINPROGRESS)


@embedded
def test_who_gives_up_again_and_again_stalls_nobody(guest: Guest) -> None:
    """More dials than the backend has threads, twice: the second ones are not behind the first, once it goes on."""
    script = """
for _ in range(3):
    socks = [start(7) for _ in range(12)]
    say("begun", *{first for _, first in socks})
    for sock, _ in socks:
        sock.close()
say("beside", reach(beside))
last, first = start(7)
say("waits")
events(last, 30)
last.send(b"late")
select.select([last], [], [], 10)
say("end", last.recv(9).decode())
"""
    with hanging(guest, HEAD + script) as (running, go, resume):
        go()
        eventually(lambda: ["waits"] in lines(running), 60, "those who give up")
        resume()
        assert running.wait() == 0, running.stderr
        seen = lines(running)
    assert seen[:3] == [["begun", "EINPROGRESS"]] * 3
    assert seen[3:] == [["beside", "hello"], ["waits"], ["end", "late"]]


@embedded
def test_the_next_network_takes_what_was_promised(guest: Guest) -> None:
    """The backend is killed while it is asked, and the rule names this host after it."""
    script = """
sock, first = start(7)
say("begun", first)
shut, first = start(12)
say("waits")
seen = [events(sock, 30), name(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))]
sock.send(b"next")
select.select([sock], [], [], 10)
events(shut, 30)
say("end", *seen, sock.recv(9).decode(), name(shut.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
"""
    found = told(guest, script, killed(guest), '["lab", "host"]')
    assert found["begun"] == ["EINPROGRESS"]
    assert found["end"] == [4, "ok", "next", "ECONNREFUSED"]
    calls = [c for c in guest.calls if c["verb"] == "connect" and c["rule"].endswith(" via host")]
    assert {(c["target"].rpartition(":")[2], c["error"]) for c in calls} == {
        ("7", errno.EINPROGRESS),
        ("12", errno.EINPROGRESS),
    }
    assert {c["datapath"] for c in calls} == {"relay"}


@embedded
def test_without_another_network_the_promise_fails(guest: Guest) -> None:
    script = """
sock, first = start(7)
say("waits")
events(sock, 30)
say("end", first, name(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
"""
    end = told(guest, script, killed(guest))["end"]
    calls = [c for c in guest.calls if c["verb"] == "connect" and c["target"].endswith(":7")]
    last = max(calls, key=lambda call: call["duration"])
    assert last["error"] == errno.ENETDOWN
    assert end == ["EINPROGRESS", "ECONNREFUSED"]  # no packet brings ENETDOWN


@embedded
def test_who_has_given_up_before_the_next_network_has_its_record(guest: Guest) -> None:
    """Closed just before the backend is killed, so that this host may be asked for it, too."""
    script = """
sock, first = start(7)
time.sleep(0.3)
sock.close()
say("waits")
say("begun", first)
print("beside", reach(beside), flush=True)
"""
    found = told(guest, script, killed(guest), '["lab", "host"]')
    assert found["begun"] == ["EINPROGRESS"]
    calls = [c for c in guest.calls if c["verb"] == "connect" and c["target"].endswith(":7")]
    (left,) = [c for c in calls if c["duration"] > 0.3]
    assert (left["decision"], left["error"]) == ("allow", errno.EINPROGRESS)


@embedded
def test_a_policy_that_came_meanwhile_refuses(guest: Guest) -> None:
    """By now the rule is another one: the backend that answers late is left, and of what it holds nothing stays."""
    script = """
sock, first = start(7)
time.sleep(0.6)
say("waits")
seen = events(sock, 30) & (select.POLLERR | select.POLLHUP)
say("end", bool(seen), name(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
sys.stdin.readline()
"""
    with hanging(guest, HEAD + script) as (running, go, resume):
        backend = guest.backends()[0].process
        go()
        eventually(lambda: ["waits"] in lines(running), 30, "the beginning")
        before = len(os.listdir(f"/proc/{backend.pid}/fd"))
        change(guest, running, f'[[rule]]\nallow = "{guest.world.web4}:9"\n')
        resume()
        eventually(lambda: len(lines(running)) == 2, 30, "the refusal")
        assert lines(running)[1] == ["end", True, "EHOSTUNREACH"]
        eventually(lambda: len(os.listdir(f"/proc/{backend.pid}/fd")) <= before, 10, "its end")
        go()
        assert running.wait() == 0, running.stderr
    (call,) = [c for c in guest.calls if c["target"].endswith(":7") and c["duration"] > 0.6]
    assert (call["verb"], call["decision"], call["error"]) == ("connect", "deny", errno.EACCES)


@embedded
def test_dials_of_who_gave_up_count_while_they_are_under_way(guest: Guest) -> None:
    """Four can be, of one backend; those behind them leave its queue."""
    script = """
socks = [start(7) for _ in range(6)]
say("begun", [first for _, first in socks])
for sock, _ in socks:
    sock.close()
time.sleep(1.2)
socks = [start(7) for _ in range(3)]
say("again", [first for _, first in socks])
"""
    more = ("--limit", "connects=6")
    with hanging(guest, HEAD + script, more=more) as (running, go, _):
        go()
        assert running.wait() == 0, running.stderr
        found = {line[0]: line[1] for line in lines(running)}
    assert found["begun"] == ["EINPROGRESS"] * 6
    assert found["again"] == ["EINPROGRESS"] * 2 + ["EAGAIN"]
