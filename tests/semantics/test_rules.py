"""What rules change: connections, names, listeners, and the defaults without any."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .attempts import attempt, attempts, guests

if TYPE_CHECKING:
    from world.runner import Guest

    from .conftest import Site


@guests
def test_defaults(guest: Guest, site: Site) -> None:
    """Public and private are allowed, metadata and link-local are not."""
    world = site.world
    found = attempts(
        guest,
        site,
        f"connect {world.web4} 80",
        f"connect {world.private4} 80",
        f"connect {world.metadata4} 80",
        f"connect {world.metadata4} 80 nonblocking",
        f"connect ::ffff:{world.metadata4} 80",
        "connect 169.254.1.1 80",
        "connect fe80::1 80",
        "connect fd00:ec2::254 80",
    )
    assert found == ["ok", "ok"] + ["EACCES"] * 6


def test_metadata_is_there_natively(guest: Guest, site: Site) -> None:
    """The refusal above is ours: natively and with a rule the service answers."""
    options = () if guest.native else ("--allow", f"{site.world.metadata4}:80")
    assert attempt(guest, site, "connect", site.world.metadata4, "80", options=options) == "ok"


@guests
def test_deny(guest: Guest, site: Site) -> None:
    world = site.world
    found = attempts(
        guest,
        site,
        f"connect {world.web4} 80",
        f"connect {world.web4} 80 nonblocking",
        f"connect ::ffff:{world.web4} 80",
        f"connect {world.web4} {world.echo_port}",
        f"connect {world.private4} 80",
        f"connect {world.private4} 81",
        options=("--deny", f"{world.web4}:80", "--deny", "10.0.0.0/8:1-80"),
    )
    assert found == ["EACCES"] * 3 + ["ok", "EACCES", "ECONNREFUSED"]


@guests
def test_deny_wins_over_allow(guest: Guest, site: Site) -> None:
    world = site.world
    options = ("--deny", f"{world.web4}:80", "--allow", "public")
    lines = (f"connect {world.web4} 80", f"connect {world.web4} {world.echo_port}")
    assert attempts(guest, site, *lines, options=options) == ["EACCES", "ok"]


@guests
def test_deny_ipv6(guest: Guest, site: Site) -> None:
    if not site.world.has_ipv6:
        pytest.skip("this host has no IPv6")
    lines = (f"connect {site.world.web6} 80", f"connect {site.world.web4} 80")
    options = ("--deny", f"[{site.world.web6}]:80")
    assert attempts(guest, site, *lines, options=options) == ["EACCES", "ok"]


@guests
def test_allow_refuses_the_rest(guest: Guest, site: Site) -> None:
    world = site.world
    found = attempts(
        guest,
        site,
        f"connect {world.web4} 80",
        f"connect {world.web4} {world.echo_port}",
        f"connect {world.private4} 80",
        options=("--allow", f"{world.web4}:80"),
    )
    assert found == ["ok", "EACCES", "EACCES"]


@guests
def test_rules_by_name(guest: Guest, site: Site) -> None:
    """The name and the addresses it was resolved to; other names do not exist, at once."""
    world = site.world
    found = attempts(
        guest,
        site,
        "connect v4only.test 80",
        "connect v4only.test 7",
        "resolve web.test",
        "resolve no-such-name.test",
        f"connect {world.web4} 80",
        options=("--allow", "v4only.test:80"),
    )
    assert found == ["ok", "EACCES", "NONAME", "NONAME", "EACCES"]


@guests
def test_denied_name(guest: Guest, site: Site) -> None:
    lines = ("resolve web.test", "resolve v4only.test")
    found = attempts(guest, site, *lines, options=("--deny", "web.test"))
    assert found == ["NONAME", ["198.51.100.11"]]


def test_names_resolve_alike(guest: Guest, site: Site) -> None:
    lines = [f"resolve {name}.test" for name in ("web", "v4only", "v6only", "many", "absent")]
    native = site.world.host.run(
        [*site.probe("attempt.py"), "each"], user="xstest", input="".join(f"{x}\n" for x in lines)
    )
    expected = [json.loads(line) for line in native.stdout.splitlines()]
    assert expected[0] == ["198.51.100.10", "2001:db8:20::10"]
    assert attempts(guest, site, *lines) == expected[: len(lines)]


@guests
def test_listening_by_rule(guest: Guest, site: Site) -> None:
    first, second = guest.port(), guest.port()
    lines = (f"listen 0.0.0.0 {second}", f"listen :: {second}", f"listen 0.0.0.0 {first}")
    found = attempts(guest, site, *lines, options=("--allow", f"listen:any:{first}"))
    assert found == ["EACCES", "EACCES", "ok"]
    found = attempts(guest, site, lines[0], lines[2], options=("--deny", f"listen:any:{second}"))
    assert found == ["EACCES", "ok"]


@guests
def test_who_may_listen_may_not_connect_for_that(guest: Guest, site: Site) -> None:
    """Rules of one direction say nothing of the other, whichever address the connection comes from."""
    world, port = site.world, guest.port()
    lines = (
        f"connect {world.web4} 80",
        f"connect {world.web4} {world.echo_port}",
        f"listen 0.0.0.0 {port}",
    )
    options = ("--allow", f"listen:any:{port}", "--allow", f"{world.web4}:80")
    assert attempts(guest, site, *lines, options=options) == ["ok", "EACCES", "ok"]


@guests
def test_listening_without_bind_by_rule(guest: Guest, site: Site) -> None:
    """listen on an unbound socket binds by itself: judged all the same."""
    script = """
import errno, socket
for family in (socket.AF_INET, socket.AF_INET6):
    with socket.socket(family) as sock:
        try:
            sock.listen()
            print("listening", sock.getsockname()[1])
        except OSError as error:
            print(errno.errorcode[error.errno])
"""
    done = guest.run([guest.world.python, "-c", script], options=("--deny", "listen:any"))
    assert done.stdout == "EACCES\nEACCES\n", done.stderr
