"""Rules that verify first bytes and rules with limits, over every data path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from policykit import EMBEDDED, GUESTS, hello, reached, said, written
from world.fixtures import only
from world.internet import HTTPS

if TYPE_CHECKING:
    from world.runner import Guest

embedded = pytest.mark.parametrize("guest", EMBEDDED, indirect=True)
guests = pytest.mark.parametrize("guest", GUESTS, indirect=True)


def made(guest: Guest) -> list[dict[str, Any]]:
    """The records of connections that came to be, or began to."""
    return [c for c in guest.calls if c["verb"] == "connect" and c["decision"] == "allow"]


@guests
def test_first_bytes_name_the_host_of_the_rule(guest: Guest) -> None:
    text = """
[[rule]]
allow = "web.test:7"
verify = "sni"

[[rule]]
allow = "*.example.test:7"
verify = "host"
"""
    options = written(guest, text)
    lines = (
        hello("web.test"),
        hello("intra.example.test"),
        b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n",
    )
    assert said(guest, "web.test:7", options, *lines) == ["True", "ECONNRESET", "ECONNRESET"]
    request = "GET / HTTP/1.1\r\nCookie: {}\r\nHost: {}\r\n\r\n"
    hosts = ("intra.example.test:7", "other.example.test", "web.test", "example.test")
    requests = [request.format("x" * 3000, host).encode() for host in hosts]
    found = said(guest, "intra.example.test:7", options, *requests)
    assert found == ["True", "True", "ECONNRESET", "ECONNRESET"]
    if guest.datapath == "ring":
        return  # the backend records them
    assert {call["datapath"] for call in made(guest)} == {"relay"}
    refused = [call for call in guest.calls if call["rule"].startswith("verify of ")]
    assert {(call["verb"], call["error"], call["decision"]) for call in refused} == {
        ("send", 104, "deny")
    }
    assert [call["rule"].partition(": ")[2] for call in refused] == [
        "they name intra.example.test",
        "they are not TLS",
        "they name web.test",
        "they name example.test",
    ]
    assert all(call["source"].rpartition("/")[2].startswith("policy.toml:") for call in refused)


@embedded
def test_what_is_verified_is_tcp(guest: Guest) -> None:
    """QUIC to an address of the rule would go past it."""
    text = '[[rule]]\nallow = "web.test"\nverify = "sni"\n'
    code = """
import socket
host = socket.gethostbyname("web.test")
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.sendto(b"x", (host, 443))
"""
    argv = [guest.world.python, "-c", code]
    guest.run(argv, options=written(guest, text), check=True)
    sent = [(c["decision"], c["target"]) for c in guest.calls if c["verb"] == "send"]
    assert sent == [("deny", f"{guest.world.web4}:443/udp")]


@guests
def test_so_many_connections_at_once(guest: Guest) -> None:
    text = """
[[rule]]
allow = "web.test:7"
limit = { concurrent = 2 }
"""
    code = """
import errno, socket, time
held = []
def more():
    try:
        held.append(socket.create_connection(("web.test", 7), timeout=8))
        held[-1].send(b"x")
        return held[-1].recv(1).decode()
    except OSError as error:
        return errno.errorcode[error.errno]
print(more(), more(), more(), more())
held.pop().close()
deadline = time.monotonic() + 10
while (last := more()) != "x" and time.monotonic() < deadline:
    time.sleep(0.01)
print(last, more())
"""
    done = guest.run([guest.world.python, "-c", code], options=written(guest, text), check=True)
    assert done.stdout.split() == ["x", "x", *["ECONNREFUSED"] * 2, "x", "ECONNREFUSED"]
    if guest.datapath != "ring":
        refused = [call for call in guest.calls if call["decision"] == "deny"]
        assert {call["rule"] for call in refused} == {"limit of web.test:7: 2 connections at once"}


@guests
def test_so_many_new_connections(guest: Guest) -> None:
    text = """
[[rule]]
allow = "web.test:7"
limit = { connects = 0.01 }

[[rule]]
allow = "web.test:80"
"""
    places = ("web.test:7", "web.test:7", "web.test:80", "web.test:7")
    found = reached(guest, *places, options=written(guest, text))
    assert found == ["ok", "ECONNREFUSED", "ok", "ECONNREFUSED"]
    if (
        guest.datapath == "direct"
    ):  # what a rule grants no more of than so much is the relay's to count
        paths = {(c["target"].rpartition(":")[2], c["datapath"]) for c in made(guest)}
        assert paths == {("7", "relay"), ("80", "direct")}


@pytest.mark.alone
@guests
def test_so_many_bytes(guest: Guest) -> None:
    """Of two rules the one that grants four times as much gets about that, while both send."""
    text = """
[[rule]]
allow = "web.test:7"
limit = { rate = "400k" }

[[rule]]
allow = "v4only.test:7"
limit = { rate = "1.6M" }
"""
    code = """
import socket, struct, threading
counts, done = [0, 0], threading.Event()
def feed(sock):
    try:
        while not done.is_set():
            sock.sendall(bytes(1 << 14))
    except OSError:
        pass
def drain(at, sock):
    while not done.is_set():
        counts[at] += len(sock.recv(1 << 16))
socks = [socket.create_connection((host, 7), timeout=20) for host in ("web.test", "v4only.test")]
for at, sock in enumerate(socks):
    threading.Thread(target=feed, args=(sock,), daemon=True).start()
    threading.Thread(target=drain, args=(at, sock), daemon=True).start()
while counts[1] < 2_400_000:
    done.wait(0.01)
print(*counts)
done.set()
for sock in socks:  # what is under way would be delivered at the rule's rate, for longer than the test
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
"""
    argv = [guest.world.python, "-c", code]
    done = guest.run(argv, options=written(guest, text), check=True, timeout=100)
    slow, fast = map(int, done.stdout.split())
    assert 2.5 < fast / slow < 6.5, done.stdout


# Asks a name server for the HTTPS records of two names; prints the answers in hexadecimal digits.
ASK = """
import socket, sys
for name in (b"ech", b"key"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        head = bytes((0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0))
        sock.sendto(head + b"\\x03" + name + b"\\x04test\\x00" + bytes((0, 65, 0, 1)), (sys.argv[1], 53))
        print(sock.recv(4096).hex())
"""


@pytest.mark.parametrize("guest", only("direct", "ring"), indirect=True)
def test_a_verified_hello_is_never_an_encrypted_one(guest: Guest) -> None:
    """The keys are taken out of what the guest is told, whichever server it asks, and nothing beside them."""
    text = '[[rule]]\nallow = "ech.test:443"\nverify = "sni"\n[[rule]]\nallow = "key.test:443"\n'
    argv = [guest.world.python, "-c", ASK, guest.world.dns4]
    done = guest.run(argv, options=written(guest, text), check=True, timeout=60)
    verified, other = done.stdout.splitlines()
    alpn, keys = HTTPS[10:20], HTTPS[20:]
    assert alpn in verified
    assert keys not in verified
    assert alpn + keys in other
