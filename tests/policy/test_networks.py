"""Networks that rules send calls to: another namespace, another backend, and calls while one of them is away."""

from __future__ import annotations

import errno
import json
from typing import TYPE_CHECKING

import pytest

from policykit import (
    EMBEDDED,
    GUESTS,
    NO_WAY,
    PORT,
    SERVER,
    Office,
    hanging,
    reached,
    written,
)
from world.fixtures import only
from world.namespaces import eventually

if TYPE_CHECKING:
    from world.runner import Guest

embedded = pytest.mark.parametrize("guest", EMBEDDED, indirect=True)

# Prints what a server says of its own network: the namespace's loopback address, by which nobody else is met.
ASK = """
import socket, sys
for host, port in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(b"hello")
            print(sock.recv(5).decode(), sock.getpeername()[0])
    except OSError as error:
        print(type(error).__name__, error.errno)
"""


def ask(guest: Guest, options: tuple[str, ...], *places: str) -> list[str]:
    """What came of each HOST:PORT, of a guest of root's, who may enter namespaces."""
    words = [word for place in places for word in place.rsplit(":", 1)]
    argv = [guest.world.python, "-c", ASK, *words]
    return guest.run(argv, options=options, user=None, check=True).stdout.splitlines()


@embedded
def test_a_server_that_only_another_namespace_reaches(guest: Guest, office: Office) -> None:
    text = f"""
[networks]
{office.toml()}

[[rule]]
allow = "*.office.test:{PORT}"
via = "office"

[[rule]]
allow = ["{SERVER}:{PORT + 1}", "web.test:7"]
"""
    options = written(guest, text)
    places = (f"srv.office.test:{PORT}", "web.test:7", f"{SERVER}:{PORT + 1}")
    found = ask(guest, options, *places)
    assert found[0] == f"hello {SERVER}"
    assert found[1].startswith("hello")
    assert not found[2].startswith("hello")
    (call,) = [c for c in guest.calls if c["target"] == f"{SERVER}:{PORT}"]
    assert (call["verb"], call["datapath"], call["decision"]) == ("connect", "relay", "allow")
    assert (call["rule"], call["name"]) == (
        f"*.office.test:{PORT} via office",
        "srv.office.test",
    )


@embedded
def test_names_of_another_network_are_its_own(guest: Guest, office: Office) -> None:
    """They resolve there and nowhere else, and open no loopback address."""
    text = f"""
[networks]
{office.toml()}

[[rule]]
allow = ["*.office.test:{PORT}", "web.test:7"]
via = "office"
"""
    places = (f"local.office.test:{PORT}", f"none.office.test:{PORT}", "web.test:7")
    assert ask(guest, written(guest, text), *places) == ["gaierror -2"] * 3
    why = {call["target"]: call["rule"] for call in guest.calls if call["decision"] == "deny"}
    assert "the host's loopback" in why["local.office.test"]


@embedded
def test_a_network_that_is_away_ends_calls_or_the_next_takes_them(
    guest: Guest, office: Office
) -> None:
    text = f"""
[networks]
away = {{ netns = "/run/netns/xensock-no-such" }}
shut = {{ backend = "local:{guest.directory}/nobody" }}
{office.toml()}

[[rule]]
allow = "{SERVER}:{PORT}"
via = ["away", "shut", "office"]

[[rule]]
allow = "{guest.world.web4}:7"
via = ["away", "shut"]

[[rule]]
allow = "{guest.world.web4}:80"
via = ["office", "host"]

[[rule]]
allow = "alias.test:7"
via = "away"

[[rule]]
allow = "{guest.world.web4}:81"
via = ["away", "office"]
"""
    web = guest.world.web4
    places = (f"{SERVER}:{PORT}", f"{web}:7", f"{web}:80", "alias.test:7", f"{web}:81")
    found = ask(guest, written(guest, text), *places)
    # The office has no route to the world: what a rule says is asked for next.
    assert found[:2] == [f"hello {SERVER}", "OSError 101"]
    assert found[2].endswith(web) or "Timeout" in found[2]
    assert found[3:] == ["gaierror -3", "OSError 101"]
    rules = {c["target"]: c["rule"] for c in guest.calls if c["verb"] == "connect"}
    assert rules[f"{SERVER}:{PORT}"] == f"{SERVER}:{PORT} via office"
    assert rules[f"{web}:7"] == f"{web}:7"
    assert rules[f"{web}:80"] == f"{web}:80 via host"
    assert rules[f"{web}:81"] == f"{web}:81 via office"
    hints = {c["target"]: c["hint"] for c in guest.calls if c["hint"]}
    assert {hints.pop(f"{web}:{port}") for port in (7, 81)} == {NO_WAY}
    assert NO_WAY not in hints.values()


@embedded
def test_a_network_that_comes_back_is_used(guest: Guest, office: Office) -> None:
    """A VPN's namespace that is made, while a guest waits for it."""
    link = guest.directory / "later"
    text = f"""
[networks]
later = {{ netns = "{link}" }}

[[rule]]
allow = "{SERVER}:{PORT}"
via = "later"
"""
    code = """
import os, socket, sys, time
def reach():
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10):
            return 0
    except OSError as error:
        return error.errno
print(reach())
os.symlink(sys.argv[3], sys.argv[4])
deadline = time.monotonic() + 30
while reach() and time.monotonic() < deadline:
    time.sleep(0.05)
print(reach())
os.unlink(sys.argv[4])
print(reach())
"""
    argv = [guest.world.python, "-c", code, SERVER, str(PORT), office.path, str(link)]
    done = guest.run(argv, options=written(guest, text), user=None, check=True, timeout=60)
    assert done.stdout.split() == ["101", "0", "101"]
    assert "the network later cannot be reached for now" in done.stderr
    assert "the network later can be reached now" in done.stderr


@embedded
def test_another_backend_is_a_network(guest: Guest) -> None:
    """A backend with rules of its own carries what the guest's policy sends there, and nothing else."""
    url = guest.backend(("--allow", "web.test:7"), "xstest")
    text = f"""
[networks]
lab = {{ backend = "{url}" }}

[[rule]]
allow = ["web.test:7", "web.test:80"]
via = "lab"

[[rule]]
allow = "intra.example.test:7"
"""
    found = reached(
        guest, "web.test:7", "web.test:80", "intra.example.test:7", options=written(guest, text)
    )
    assert found == ["ok", "EACCES", "ok"]
    calls = [c for c in guest.calls if c["verb"] == "connect" and c["name"] == "web.test"]
    seen = {
        (c["target"].rpartition(":")[2], c["datapath"]) for c in calls if c["decision"] != "deny"
    }
    assert seen == {("7", "ring")}


@pytest.mark.parametrize("guest", only("ring"), indirect=True)
def test_a_backend_sends_its_guests_to_namespaces(guest: Guest, office: Office) -> None:
    """The guests are an ordinary user's, the backend is root's."""
    text = f"""
[networks]
away = {{ netns = "/run/netns/xensock-no-such" }}
{office.toml()}

[[rule]]
allow = "*.office.test:{PORT}"
via = ["away", "office"]

[[rule]]
allow = "web.test:7"

[[rule]]
allow = "{guest.world.web4}:80"
via = "office"

[[rule]]
allow = "{guest.world.web4}:81"
via = "away"
"""
    web = guest.world.web4
    words = [f"srv.office.test:{PORT}", "web.test:7", f"{web}:80", f"{web}:81"]
    found = ask(guest, written(guest, text), *words)
    assert found[0] == f"hello {SERVER}"
    assert found[1].startswith("hello")
    assert found[2:] == ["OSError 101", "OSError 101"]
    hints = {c["target"]: c["hint"] for c in guest.calls}
    assert (hints[f"{web}:80"], hints[f"{web}:81"]) == (NO_WAY, NO_WAY)
    (call,) = [c for c in guest.calls if c["target"] == f"{SERVER}:{PORT}"]
    assert call["rule"] == f"*.office.test:{PORT} via office"


@pytest.mark.parametrize("guest", only("ring"), indirect=True)
def test_a_backend_forwards_to_a_backend(guest: Guest) -> None:
    """Both have rules. The far one resolves the names of what goes there, and refuses with its own word."""
    far = guest.backend(("--allow", "web.test:7", "--allow", "198.51.100.10:81"), "xstest")
    text = f"""
[networks]
lab = {{ backend = "{far}" }}
shut = {{ backend = "local:{guest.directory}/nobody" }}

[[rule]]
allow = ["web.test:7", "web.test:80", "{guest.world.web4}:81"]
via = ["shut", "lab"]

[[rule]]
allow = "intra.example.test:7"

[[rule]]
allow = "{guest.world.web4}:82"
via = "shut"
"""
    web = guest.world.web4
    words = ["web.test:7", "web.test:80", "intra.example.test:7", f"{web}:82", f"{web}:81"]
    found = reached(guest, *words, options=written(guest, text))
    assert found == ["ok", "EACCES", "ok", "ENETUNREACH", "ECONNREFUSED"]
    calls = [call for call in guest.calls if call["verb"] == "connect"]
    (first, *_) = [call for call in calls if call["target"].endswith(":7")]
    assert first["rule"] == "web.test:7 via lab"
    refused = {call["hint"] for call in calls if call["error"] == errno.EACCES}
    assert "--allow web.test:80" in refused


# Sends what came to a server and waits for it all, over as many connections at once.
PARALLEL = """
import socket, sys, threading
good = []
def run(number):
    data = bytes([number % 251]) * 300_000
    with socket.create_connection((sys.argv[1], 7), timeout=30) as sock:
        sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        sender.start()
        back = b"".join(iter(lambda: sock.recv(65536), b""))
        sender.join()
        if back == data:
            good.append(number)
threads = [threading.Thread(target=run, args=(number,)) for number in range(24)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(good))
"""


@pytest.mark.parametrize("guest", only("ring"), indirect=True)
def test_bytes_through_two_backends(guest: Guest) -> None:
    """Both ways, to the end of each; the far backend is gone then, and the near one goes on."""
    far = guest.backend(("--allow", "web.test:7"), "xstest")
    text = f"""
[networks]
lab = {{ backend = "{far}" }}

[[rule]]
allow = "web.test:7"
via = "lab"
limit = {{ concurrent = 64 }}

[[rule]]
allow = "intra.example.test:7"
"""
    options = written(guest, text)
    argv = [guest.world.python, "-c", PARALLEL, "web.test"]
    assert guest.run(argv, options=options, check=True, timeout=60).stdout == "24\n"
    guest.backends()[0].stop()
    found = reached(guest, "web.test:7", "intra.example.test:7", options=options)
    assert found == ["NONAME", "ok"]


# One connection that hangs, others beside it; then the first one again.
BESIDE = """
import socket, sys, threading
def reach(host):
    with socket.create_connection((host, 7), timeout=60) as sock:
        sock.sendall(b"hello")
        return sock.recv(5).decode()
print("warm", reach(sys.argv[1]), flush=True)
sys.stdin.readline()
waiting = threading.Thread(target=lambda: print("late", reach(sys.argv[1]), flush=True))
waiting.start()
for _ in range(3):
    print("beside", reach(sys.argv[2]), flush=True)
waiting.join()
"""


@pytest.mark.parametrize("guest", GUESTS, indirect=True)
def test_a_backend_that_hangs_stalls_nobody_else(guest: Guest) -> None:
    """One of the run's own networks, or of those behind its backend."""
    with hanging(guest, BESIDE) as (running, go, resume):
        go()
        eventually(lambda: running.stdout.count("beside hello") == 3, 20, "the others")
        assert "late" not in running.stdout
        resume()
        assert running.wait() == 0
        assert "late hello" in running.stdout


# One connection that hangs, one beside it, and the end.
LEAVE = """
import os, socket, sys, threading
def reach(host):
    with socket.create_connection((host, 7), timeout=60) as sock:
        sock.sendall(b"hello")
        return sock.recv(5).decode()
print("warm", reach(sys.argv[1]), flush=True)
sys.stdin.readline()
threading.Thread(target=reach, args=(sys.argv[1],)).start()
for _ in range(3):
    print("beside", reach(sys.argv[2]), flush=True)
os._exit(3)
"""


@pytest.mark.parametrize("guest", GUESTS, indirect=True)
def test_a_run_ends_while_a_backend_hangs(guest: Guest) -> None:
    with hanging(guest, LEAVE) as (running, go, _):
        go()
        assert running.wait(30) == 3
        assert running.stdout.count("beside hello") == 3
        assert running.stderr == ""


# Connects until the network is there, then asks for a name and connects again and again, all at once.
CIRCLE = """
import errno, socket, sys, threading, time
def reach():
    with socket.socket() as sock:
        sock.settimeout(25)  # less than a backend may take to answer
        try:
            sock.connect((sys.argv[1], 7))
        except OSError as error:
            return errno.errorcode.get(error.errno, str(error))
        return "connected"
deadline = time.monotonic() + 30
while (first := reach()) == "ENETUNREACH" and time.monotonic() < deadline:
    time.sleep(0.05)
print(first)
try:
    print(socket.getaddrinfo("web.test.", 7))
except socket.gaierror as error:
    print(error.errno)
found = []
threads = [threading.Thread(target=lambda: found.append(reach())) for _ in range(12)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), *set(found))
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    print(errno.errorcode.get(sock.connect_ex((sys.argv[1], 7))))
"""


@pytest.mark.parametrize("guest", only("ring"), indirect=True)
@pytest.mark.slow
def test_backends_that_forward_in_a_circle_refuse_at_once(guest: Guest) -> None:
    web = guest.world.web4

    def towards(url: str) -> str:
        rule = f'[[rule]]\nallow = ["{web}:7", "web.test"]\nvia = "next"\n'
        return f'[networks]\nnext = {{ backend = "{url}" }}\n{rule}'

    own = f"local:{guest.directory}/backend-1.socket"  # the guest's, started with its policy
    far = guest.backend(written(guest, towards(own), "far.toml"), "xstest")
    argv = [guest.world.python, "-c", CIRCLE, web]
    options = written(guest, towards(far))
    done = guest.run(argv, options=options, check=True, timeout=120)
    assert done.stdout.splitlines() == ["EACCES", "-2", "12 EACCES", "EACCES"]
    refused = [call for call in guest.calls if call["decision"] == "deny"]
    assert {call["verb"] for call in refused} == {"connect", "resolve"}
    said = {(call["verb"], call["rule"], call["hint"]) for call in refused}
    assert all("forwarded in a circle" in rule for _, rule, _ in said), said
    assert all("leave its via out" in hint for _, _, hint in said), said


@pytest.mark.parametrize("guest", only("ring"), indirect=True)
def test_this_host_is_a_network_of_a_guest_with_a_backend(guest: Guest) -> None:
    url = guest.backend(("--allow", "web.test:7"), "xstest")
    text = """
[[rule]]
allow = "web.test:7"

[[rule]]
allow = "intra.example.test:7"
via = "host"
"""
    path = guest.directory / "own.toml"
    path.write_text(text)
    words = ("web.test", "7", "intra.example.test", "7")
    wrap = [*guest.xensock, "run", "--trace=json", "--backend", url, "--policy", str(path), "--"]
    done = guest.world.host.run(
        [*wrap, guest.world.python, "-c", ASK, *words], user="xstest", cwd=guest.directory
    )
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["hello", "hello"]
    calls = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    paths = {(c["name"], c["datapath"]) for c in calls if c["verb"] == "connect"}
    assert paths == {("web.test", "ring"), ("intra.example.test", "relay")}


@embedded
def test_who_may_not_enter_is_told_before_anything_runs(guest: Guest, office: Office) -> None:
    text = f'[networks]\n{office.toml()}\n[[rule]]\nallow = "web.test:7"\nvia = "office"\n'
    ran = guest.directory / "ran"
    done = guest.run(["touch", str(ran)], options=written(guest, text))
    assert done.returncode == 125
    assert f"cannot enter the network namespace {office.path}" in done.stderr
    assert "hint: run it as root; or start a backend in there" in done.stderr
    assert not ran.exists()
    listen = ("--listen", f"local:{guest.directory}/s")
    argv = [*guest.xensock, "backend", *listen, *written(guest, text)]
    done = guest.world.host.run(argv, user="xstest", cwd=guest.directory)
    assert done.returncode == 1
    assert f"cannot enter the network namespace {office.path}" in done.stderr
