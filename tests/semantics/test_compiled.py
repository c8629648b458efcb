"""Compiled probes: raw results, signal handlers, epoll's own data, and a static program."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .observing import addresses, observe

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from world.runner import Guest

    from .conftest import Site


@pytest.mark.parametrize("version", [4, 6])
def test_static_program_without_libc_calls(
    guest: Guest, site: Site, compiled: Callable[..., Path], version: int
) -> None:
    peer, _ = addresses(site, version)
    ports = [str(site.ports[name]) for name in ("echo", "closed")]
    size = 16 if version == 4 else 28
    argv = [str(compiled("static", "-static")), str(version), peer, *ports]
    assert observe(guest, argv) == [
        ("connect", "0"),
        ("echo", "hello"),
        ("peer", f"0 {size} 1"),
        ("again", "EISCONN"),
        ("refused", "EINPROGRESS"),
        ("poll", "1"),
        ("error", "ECONNREFUSED"),
        ("listen", "0"),
        # The kernel takes descriptors and lengths as 32 bits, whatever the register's upper half.
        ("upper half", "0"),
        # IPv4 looks at the address before it finds the socket bound already, IPv6 after.
        ("bind", "EADDRNOTAVAIL" if version == 4 else "EINVAL"),
    ]
    guest.mediated(2, "connect")


@pytest.mark.parametrize("version", [4, 6])
def test_handler_that_connects(
    guest: Guest, site: Site, compiled: Callable[..., Path], version: int
) -> None:
    peer, _ = addresses(site, version)
    with socket_that_swallows(site, version) as port:
        argv = [str(compiled("handler")), str(version), peer, str(port), str(site.ports["echo"])]
        ran = [("handler ran", "1"), ("connect in the handler", "0"), ("its echo", "hello")]
        assert observe(guest, argv) == [
            ("interrupted", "EINTR"),
            *ran,
            ("restart", "ETIMEDOUT"),
            *ran,
        ]


@pytest.mark.parametrize("version", [4, 6])
def test_epoll_keeps_data_and_flags(
    guest: Guest, site: Site, compiled: Callable[..., Path], version: int
) -> None:
    peer, loop = addresses(site, version)
    argv = [str(compiled("epoll_data")), str(version), peer, str(site.ports["echo"]), loop]
    expected = [
        line
        for place in ("world", "loopback")
        for index in range(4)
        for line in [
            ("add", "0"),
            ("connect", "0"),
            ("count", "1"),
            (place, f"4 deadbeef0000000{index}"),
            ("add again", "EEXIST"),
            ("delete", "0"),
            ("delete again", "ENOENT"),
        ]
    ]
    assert observe(guest, argv) == expected


@pytest.mark.parametrize("version", [4, 6])
def test_numbers_replaced_in_the_middle(
    guest: Guest, site: Site, compiled: Callable[..., Path], version: int
) -> None:
    peer, _ = addresses(site, version)
    argv = [str(compiled("race")), str(version), peer, str(site.ports["echo"])]
    assert observe(guest, argv) == [("odd errno", "none"), ("broken", "0")]


@pytest.mark.parametrize("version", [4, 6])
def test_storm_of_signals(
    guest: Guest, site: Site, compiled: Callable[..., Path], version: int
) -> None:
    """No call fails for a signal but with EINTR, and never under SA_RESTART; none is carried out twice."""
    peer, _ = addresses(site, version)
    argv = [str(compiled("storm")), str(version), peer, str(site.ports["echo"])]
    seen = dict(observe(guest, argv))
    # Before the backend knows of a call, a signal ends its wait: docs/explanation/differences.md.
    assert (
        seen.pop("interrupt: cut short")
        in (("never",), ("never", "rarely"))[guest.datapath != "native"]
    )
    assert seen == {
        "restart: trouble": "none",
        "restart: other errors": "0",
        "restart: signals": "many",
        "restart: cut short": "never",
        "interrupt: trouble": "none",
        "interrupt: other errors": "0",
        "interrupt: signals": "many",
    }


@pytest.mark.parametrize("version", [4, 6])
def test_signals_for_a_process_of_threads(
    guest: Guest, site: Site, compiled: Callable[..., Path], version: int
) -> None:
    peer, _ = addresses(site, version)
    with socket_that_swallows(site, version) as port:
        argv = [str(compiled("shared_signal")), str(version), peer, str(port)]
        assert observe(guest, argv) == [
            ("first thread", "EINTR"),
            ("first thread soon", "yes"),
            ("handled by it", "1 1"),
            ("other thread", "EINTR"),
            ("other thread soon", "yes"),
            ("handled by that", "1 1"),
            ("taken elsewhere", "1 yes"),
            ("for the thread", "EINTR 2"),
            ("stopped", "1 yes"),
            ("continued", "1"),
            ("ended", "15"),
        ]


class socket_that_swallows:
    """A port of the peer that leaves SYNs unanswered, for as long as the block lasts."""

    def __init__(self, site: Site, version: int) -> None:
        self.site, self.version = site, version

    def __enter__(self) -> int:
        self.sock = self.site.world.peer.connect(
            self.site.world.peer.addr4, self.site.ports["control"]
        )
        request = {"op": "blackhole", "family": self.version}
        self.sock.sendall(json.dumps(request).encode() + b"\n")
        with self.sock.makefile("rb") as file:
            return int(json.loads(file.readline())["port"])

    def __exit__(self, *_: object) -> None:
        self.sock.close()
