"""Rules by name in a guest: which addresses a name opens, and that no other way to a resolver is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .attempts import attempts, guests

if TYPE_CHECKING:
    from world.runner import Guest

    from .conftest import Site

ASK = """
import socket, struct, sys
kind, server, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
for name, type in (pair.split("/") for pair in sys.argv[4:]):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + struct.pack("!xHH", int(type), 1)
    with socket.socket(type=socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        sock.connect((server, port))
        sock.sendall(struct.pack("!H", len(query)) * (kind == "tcp") + query)
        answer = sock.recv(4096)
    print(struct.unpack_from("!H", answer, 2 + 2 * (kind == "tcp"))[0] & 15)
"""
A, PTR, MX, TXT, SRV, HTTPS = 1, 12, 15, 16, 33, 65


@guests
def test_a_name_opens_the_end_of_its_chain_and_no_alias(guest: Guest, site: Site) -> None:
    lines = ("connect alias.test 80", "resolve web.test", f"connect {site.world.web4} 80")
    found = attempts(guest, site, *lines, options=("--allow", "alias.test:80"))
    assert found == ["ok", "NONAME", "ok"]
    found = attempts(guest, site, "resolve alias.test", options=("--allow", "web.test:80"))
    assert found == ["NONAME"]


@guests
def test_a_name_that_leads_inside_leads_nowhere(guest: Guest, site: Site) -> None:
    """Rebinding: private addresses and the metadata service are no answers to a rule by name."""
    world = site.world
    by_name = ("--allow", "private.test", "--allow", "metadata.test")
    lines = (
        "resolve private.test",
        "resolve metadata.test",
        f"connect {world.private4} 80",
        f"connect {world.metadata4} 80",
    )
    found = attempts(guest, site, *lines, options=by_name)
    assert all("NONAME" in str(each) or "gai" in str(each) for each in found[:2]), found
    assert found[2:] == ["EACCES", "EACCES"]
    stripped = [c for c in guest.calls if c["verb"] == "resolve" and "which is" in c["rule"]]
    assert {c["target"] for c in stripped} == {"private.test", "metadata.test"}
    assert all(c["decision"] == "deny" and c["hint"].startswith("--allow ") for c in stripped)
    # Unless a rule by address says so; and without rules by name nothing is stripped.
    lines = ("connect private.test 80", "resolve metadata.test")
    found = attempts(guest, site, *lines, options=(*by_name, "--allow", "private:80"))
    assert found[0] == "ok"
    assert world.metadata4 not in str(found[1])
    assert attempts(guest, site, "connect private.test 80") == ["ok"]


@guests
def test_every_resolver_and_every_type_ends_at_the_policy(guest: Guest, site: Site) -> None:
    """Whatever server is asked, over UDP and TCP; and a resolver by TLS or HTTPS has an address that nobody learned."""
    world = site.world
    names = [f"secret.evil.test/{kind}" for kind in (A, TXT, MX, SRV, HTTPS)]
    names += ["10.100.51.198.in-addr.arpa/12", "web.test/1"]
    before = len(_questions(world))
    for kind in ("udp", "tcp"):
        for server in (world.dns4, "192.0.2.99"):
            argv = [world.python, "-c", ASK, kind, server, 53, *names]
            done = guest.run(argv, options=("--allow", "web.test"), check=True)
            assert done.stdout.split() == ["3"] * (len(names) - 1) + ["0"]
    asked = _questions(world)[before:]
    assert asked
    assert all("web.test" in line for line in asked)
    counted = [c for c in guest.calls if c["verb"] == "count"]
    assert [(c["target"], c["result"]) for c in counted] == [("questions refused", 6)] * 4
    lines = [f"connect {world.dns4} {port}" for port in (443, 853, 5353)]
    assert attempts(guest, site, *lines, options=("--allow", "web.test")) == ["EACCES"] * 3


def _questions(world) -> list[str]:
    """What the world's name server was asked."""
    log = (world.directory / "dns.log").read_text()
    return [line for line in log.splitlines() if "query[" in line]


@guests
def test_names_of_the_search_list(guest: Guest, site: Site) -> None:
    """A short name is asked for with what the search list adds: the rule names the whole, or the short one."""
    found = attempts(
        guest, site, "connect intra 80", "resolve web", options=("--allow", "intra.example.test:80")
    )
    assert found == ["ok", "NONAME"]
    assert attempts(guest, site, "connect intra 80", options=("--allow", "intra:80")) == ["ok"]
