"""Networks beside XenSock's own: an interface that a guest has itself, and a VPN."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from policykit import EXCHANGE, NO_WAY, reached, written
from world.fixtures import only
from world.internet import HERE
from world.namespaces import Namespace, eventually
from world.vpn import OUTER, Vpn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from world.internet import World
    from world.runner import Guest

SERVER, PORT = "10.78.0.5", 7078
BEHIND, FAR, NEAR, VPN_PORT = "10.98.0.6", "10.98.255.1", "10.98.255.2", 1195

# Prints what a server says, or the errno.
FETCH = """
import socket, sys
for host, port, send in zip(*[iter(sys.argv[1:])] * 3):
    try:
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(send.encode().decode("unicode_escape").encode())
            print(sock.recv(4096).decode().splitlines()[-1])
    except socket.gaierror:
        print("no name")
    except OSError as error:
        print(error.errno)
"""
GET = r"GET /address HTTP/1.0\r\n\r\n"


def fetch(guest: Guest, wrap: list[str], *words: str) -> tuple[list[str], list[dict[str, str]]]:
    """What came of each HOST, PORT, TEXT in a guest of root's, and what the trace says of its connections."""
    argv = [*wrap, guest.world.python, "-c", FETCH, *words]
    done = guest.world.host.run(argv, cwd=guest.directory, timeout=60)
    assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return done.stdout.splitlines(), [call for call in calls if call["verb"] == "connect"]


@pytest.fixture
def far_backend(world: World, guest: Guest) -> Iterator[str]:
    """A backend in a network that this machine has no way to, with a server: it is met at its socket alone."""
    space = Namespace.create("far", world.user)
    try:
        space.ip(f"addr add {SERVER}/32 dev lo")
        log = guest.directory / "far.log"
        space.service([sys.executable, str(HERE / "echo.py"), str(PORT)], log)
        url = f"local:{guest.directory}/far"
        space.mount = world.host.mount
        space.service([*guest.xensock, "backend", "--listen", url, "--allow", "any"], log)
        eventually(lambda: PORT in space.listening(), 20, "the server")
        eventually(lambda: "listening at" in log.read_text(), 20, "the backend")
        yield url
    finally:
        space.close()


@pytest.mark.parametrize("guest", only("ring"), indirect=True)
def test_a_guest_with_both_kinds_of_interface(guest: Guest, far_backend: str) -> None:
    """A rule sends calls by the interface of the guest's own machine, and the others go to the backend."""
    web = guest.world.web4
    text = f"""
[networks]
away = {{ netns = "/run/netns/xensock-no-such" }}

[[rule]]
allow = ["{SERVER}:{PORT}", "{web}:80"]

[[rule]]
allow = "web.test:7"
via = "guest"

[[rule]]
allow = "{web}:8080"
via = ["away", "guest"]
"""
    wrap = [*guest.xensock, "run", "--trace=json", "--backend", far_backend]
    wrap += [*written(guest, text), "--"]
    places = [(SERVER, PORT), ("web.test", 7), (web, 80), (web, 8080)]
    words = [word for host, port in places for word in (host, str(port), "hello")]
    found, calls = fetch(guest, wrap, *words)
    assert found[:3] == ["hello", "hello", "101"]
    seen = {call["target"]: (call["datapath"], call["rule"]) for call in calls}
    assert seen[f"{SERVER}:{PORT}"][0] == "ring"
    own = [how for target, how in seen.items() if target.endswith(":7")]
    assert own == [("relay", "web.test:7 via guest")]
    # The backend's network has no way to it, and what a rule does not send elsewhere does not go there.
    assert "via" not in seen[f"{web}:80"][1]
    assert seen[f"{web}:8080"] == ("relay", f"{web}:8080 via guest")


@pytest.mark.parametrize("guest", only("ring"), indirect=True)
@pytest.mark.slow
def test_datagrams_of_a_guest_with_both_kinds_of_interface(guest: Guest, far_backend: str) -> None:
    web = guest.world.web4
    text = f"""
[[rule]]
allow = "{SERVER}:{PORT}"

[[rule]]
allow = "web.test:7"
via = "guest"
"""
    argv = [
        *guest.xensock,
        "run",
        "--trace=json",
        "--backend",
        far_backend,
        *written(guest, text),
        "--",
    ]
    argv += [guest.world.python, "-c", EXCHANGE, SERVER, str(PORT), "web.test", "7"]
    done = guest.world.host.run(argv, cwd=guest.directory, timeout=60)
    assert done.stdout.splitlines() == [
        f"bound from {SERVER}:{PORT}", f"loose0 from {SERVER}:{PORT}",
        f"bound from {web}:7", f"loose1 from {web}:7",
    ], done.stderr  # fmt: skip
    calls = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    paths = {(c["target"], c["datapath"]) for c in calls if c["target"].endswith("/udp")}
    assert paths == {(f"{SERVER}:{PORT}/udp", "ring"), (f"{web}:7/udp", "relay")}


@pytest.mark.parametrize("guest", only("relay", "ring"), indirect=True)
def test_a_guest_without_an_interface(guest: Guest) -> None:
    """Such rules fail, or send calls by the next: that is the same for guests of a run and of a backend."""
    text = """
[[rule]]
allow = "web.test:7"
via = ["guest", "host"]

[[rule]]
allow = "198.51.100.10:80"
via = "guest"
"""
    options = written(guest, text)
    assert reached(guest, "web.test:7", "198.51.100.10:80", options=options) == [
        "ok",
        "ENETUNREACH",
    ]
    last = [call for call in guest.calls if call["verb"] == "connect"][-1]
    assert last["hint"] == NO_WAY


@pytest.fixture
def tunnel(vpn: Vpn) -> Iterator[Namespace]:
    """A namespace whose only interface is a VPN's; the VPN's program itself is on the host."""
    world = vpn.world
    space = Namespace.create("tunnel", world.user)
    log = world.directory / "tunnel.log"
    key = world.directory / "vpn" / "static.key"
    argv = ["openvpn", "--proto", "udp", "--port", str(VPN_PORT), "--secret", str(key)]
    argv += ["--cipher", "AES-256-CBC", "--auth", "SHA256", "--dev-type", "tun"]
    ends = []
    vpn.far.ip(f"addr add {BEHIND}/32 dev lo")
    try:
        ends.append(vpn.far.service([*argv, "--dev", "xs1", "--ifconfig", FAR, NEAR], log))
        ends.append(world.host.service([*argv, "--dev", "xs0", "--remote", OUTER], log))

        look = ["ip", "link", "show", "xs0"]
        eventually(lambda: not world.host.run(look).returncode, 20, f"the tunnel's device, {log}")
        world.host.ip(f"link set xs0 netns {space.name}")
        space.ip(
            f"addr add {NEAR} peer {FAR} dev xs0", "link set xs0 up", f"route add {BEHIND} dev xs0"
        )
        eventually(lambda: _answers(space), 20, f"the tunnel, {log}", interval=0.1)
        yield space
    finally:
        for end in ends:
            end.kill()
            end.wait(10)
        space.close()
        vpn.far.ip(f"addr del {BEHIND}/32 dev lo")


@pytest.mark.parametrize("guest", only("direct", "ring"), indirect=True)
def test_a_server_that_only_a_vpn_reaches(guest: Guest, tunnel: Namespace) -> None:
    """Without the VPN its rule fails, or has the next network tried, and never another one."""
    web = guest.world.web4
    inside = tunnel.service(["sleep", "infinity"], guest.directory / "inside.log")
    text = f"""
[networks]
vpn = {{ netns = "/proc/{inside.pid}/ns/net" }}

[[rule]]
allow = "{BEHIND}:80"
via = "vpn"

[[rule]]
allow = "{web}:80"
via = ["vpn", "host"]
"""

    def found(options: tuple[str, ...]) -> list[str]:
        places = (BEHIND, "80", GET, web, "80", GET)
        argv = [guest.world.python, "-c", FETCH, *places]
        done = guest.run(argv, options=options, user=None, check=True, timeout=60)
        return done.stdout.splitlines()

    own = guest.world.host.addr4
    assert found(written(guest, text)) == [NEAR, own]
    rules = {call["target"]: call["rule"] for call in guest.calls if call["verb"] == "connect"}
    assert rules == {f"{BEHIND}:80": f"{BEHIND}:80 via vpn", f"{web}:80": f"{web}:80 via host"}
    assert not _answers(guest.world.host)  # which has no way there itself
    tunnel.ip("link set xs0 down")
    assert found(written(guest, text)) == ["101", own]


def _answers(space: Namespace) -> bool:
    try:
        space.connect(BEHIND, 80, timeout=0.5).close()
    except OSError:
        return False
    return True
