"""Guests started by root: root for files and users, without the rights over networks."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from world.processes import has_id

from .attempts import Service, guests
from .observing import addresses

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from world.runner import Guest

    from .conftest import Site


@guests
def test_ways_around_as_root(guest: Guest, site: Site, compiled: Callable[..., Path]) -> None:
    """The same as root: the capabilities for it are gone."""
    peer, _ = addresses(site, 4)
    with Service(site.world.peer.listen(peer)) as service:
        argv = [str(compiled("ways")), "4", peer, str(service.port)]
        done = guest.run(argv, user=None, options=("--deny", f"{peer}:{service.port}"))
        assert service.clients == []
    seen = {x["say"]: x["got"] for x in map(json.loads, done.stdout.splitlines())}
    closed = ("raw", "packet", "bind to a device", "mark", "repair", "interface flags")
    assert {seen[what] for what in closed} <= {"EPERM", "EAFNOSUPPORT"}, seen
    assert (seen["connect"], seen["io_uring"]) == ("EACCES", "ENOSYS")


def test_root_runs_without_the_capabilities_of_networks(guest: Guest, site: Site) -> None:
    """Root in a guest stays root for files and users, and reaches the world."""
    other = 54000 if has_id(54000) else 0
    script = f"""
id -u
setpriv --reuid={other} {"--clear-groups" if other else "--keep-groups"} id -u
curl -sS http://{site.world.web4}/
grep CapEff /proc/self/status
"""
    done = guest.run(["sh", "-c", script], user=None)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["0", str(other), "hello from the world"], done.stderr
    if not guest.native:
        held = int(lines[3].split()[1], 16)
        # capabilities(7): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, LINUX_IMMUTABLE,
        # NET_BIND_SERVICE, IPC_LOCK, IPC_OWNER, SYS_CHROOT, SYS_NICE, SYS_RESOURCE, LEASE, AUDIT_WRITE, SETFCAP:
        # of files, users and the guest's own processes, and no others.
        harmless = {0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 14, 15, 18, 23, 24, 28, 29, 31}
        assert {number for number in range(64) if held >> number & 1} <= harmless
        guest.mediated(1, "connect")


@guests
def test_root_listens_on_a_privileged_port_by_rule(guest: Guest, site: Site) -> None:
    port = next(p for p in range(700, 1000) if p not in site.world.host.listening())
    words = [*site.probe("attempt.py"), "serve", "0.0.0.0", str(port), "root"]
    done = guest.run(words, user=None, input="", timeout=20)
    assert "PermissionError" in done.stderr
    rule = ("--allow", f"listen:any:{port}")
    with (
        guest.popen(words, user=None, options=rule, listens=port, stdin=subprocess.PIPE),
        site.world.peer.connect(site.world.host.addr4, port) as sock,
    ):
        assert sock.recv(10) == b"root"
