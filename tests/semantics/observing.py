"""Run a compiled probe in a guest and collect what it said."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from world.runner import Guest

    from .conftest import Site


def addresses(site: Site, version: int) -> tuple[str, str]:
    """The peer and loopback; skips where the machine lacks this version of IP."""
    if version == 6 and not site.world.has_ipv6:
        pytest.skip("this host has no IPv6")
    peer = site.world.peer
    return (peer.addr4, "127.0.0.1") if version == 4 else (peer.addr6, "::1")


def in_rule(host: str, port: int) -> str:
    """An address and a port as rules have them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def observe(guest: Guest, argv: list[str], options: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """The observations of one run, in order."""
    done = guest.run(argv, options=options, timeout=40)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [(line["say"], line["got"]) for line in lines]
