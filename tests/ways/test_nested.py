"""Namespaces that a guest makes within itself: what is allowed works there, and nothing else does."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from guestkit import no_user_namespaces
from semantics.attempts import Service

from .conftest import Echo, everywhere

if TYPE_CHECKING:
    from world.internet import World
    from world.runner import Guest

PROGRAM = """
import errno, json, socket, sys
host, allowed, refused, allowed_udp, refused_udp = sys.argv[1], *map(int, sys.argv[2:])

def outcome(call):
    try:
        call()
    except TimeoutError:
        return "silence"
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "done"

def stream(port):
    with socket.create_connection((host, port), 5) as sock:
        assert sock.recv(10)

def datagram(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        sock.connect((host, port))
        sock.send(b"x")
        assert sock.recv(10)

def within(family, address):
    with socket.socket(family) as server, socket.socket(family) as client:
        server.bind(address)
        server.listen()
        client.connect(server.getsockname())
        with server.accept()[0] as other:
            other.sendall(b"x")
            assert client.recv(1) == b"x"

def name():
    socket.getaddrinfo("web.test", 80)

print(json.dumps({
    "allowed": outcome(lambda: stream(allowed)),
    "refused": outcome(lambda: stream(refused)),
    "allowed by UDP": outcome(lambda: datagram(allowed_udp)),
    "refused by UDP": outcome(lambda: datagram(refused_udp)),
    "loopback": outcome(lambda: within(socket.AF_INET, ("127.0.0.1", 0))),
    "unix": outcome(lambda: within(socket.AF_UNIX, b"\\0nested")),
    "name": outcome(name),
}))
"""
UP = ["sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
FILES = ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
WRAPS = {
    "user": ["unshare", "--map-root-user", "--user", "--mount"],
    "files": ["bwrap", *FILES, "--unshare-all", "--share-net", "--"],
    "network": ["unshare", "--map-root-user", "--user", "--net", *UP],
    "all": ["bwrap", *FILES, "--unshare-all", "--"],
}
OWN_NETWORK = ("network", "all")


@everywhere
@pytest.mark.parametrize("kind", WRAPS)
def test_what_is_allowed_works_within_and_nothing_else(
    guest: Guest, world: World, kind: str
) -> None:
    """Within another user namespace all is as without. Of a network that the guest made nothing leads out, as natively;
    but on the direct path TCP sockets are the host's there, too, and judged."""
    if reason := no_user_namespaces():
        pytest.skip(reason)
    if shutil.which(WRAPS[kind][0]) is None:
        pytest.skip(f"{WRAPS[kind][0]} is not installed: run tools/prepare")
    seen, reached = _tried(guest, world, WRAPS[kind])
    assert seen.pop("loopback") == seen.pop("unix") == "done"
    name = seen.pop("name")
    own = kind in OWN_NETWORK
    assert (name == "done") != own
    cut = "ENETUNREACH" if own else "done"
    refused = cut if guest.native else "EACCES"
    # By a report of ICMP, or by connect(2) where nobody may be pinged either (docs/explanation/udp.md).
    by_udp = cut if guest.native else "ENETUNREACH" if own else "EHOSTUNREACH"
    assert seen.pop("refused by UDP") in (refused, by_udp)
    assert seen == {
        "allowed": "done" if guest.datapath == "direct" else cut,
        "allowed by UDP": cut,
        "refused": refused,
    }
    assert reached == (guest.native and not own)


def _tried(guest: Guest, world: World, wrap: list[str]) -> tuple[dict[str, Any], bool]:
    """What came of each, and whether anybody reached the ports that the rules refuse."""
    peer = world.peer
    with (
        Service(peer.listen(peer.addr4)) as allowed,
        Service(peer.listen(peer.addr4)) as refused,
        Echo(peer, peer.addr4) as allowed_udp,
        Echo(peer, peer.addr4) as refused_udp,
    ):
        ports = [allowed.port, refused.port, allowed_udp.port, refused_udp.port]
        rules = [f"{peer.addr4}:{refused.port}", f"{peer.addr4}:{refused_udp.port}"]
        options = () if guest.native else tuple(w for rule in rules for w in ("--deny", rule))
        argv = [*wrap, world.python, "-c", PROGRAM, peer.addr4, *map(str, ports)]
        done = guest.run(argv, options=options, timeout=60)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found, bool(refused.clients or refused_udp.clients)
