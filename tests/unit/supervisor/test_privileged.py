"""Who may bind ports below 1024."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple, cast

import pytest

from xensock.supervisor import privileged
from xensock.supervisor.publication import Publication

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xensock.supervisor.supervisor import Supervisor

PORT = 80
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
# A network with a socket in it, which is then bound from within other namespaces.
INSIDE = f"""
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def unshare(flags):
    if flags and libc.unshare(flags):
        sys.exit(f"unshare: {{os.strerror(ctypes.get_errno())}}")
way = socket.socket(fileno=int(sys.argv[1]))
uid, gid = os.getuid(), os.getgid()
unshare({CLONE_NEWUSER | CLONE_NEWNET})
for name, text in (("uid_map", f"0 {{uid}} 1"), ("setgroups", "deny"), ("gid_map", f"0 {{gid}} 1")):
    with open(f"/proc/self/{{name}}", "w") as file:
        file.write(text)
sock = socket.socket()
socket.send_fds(way, [b"s"], [sock.fileno()])
unshare(int(sys.argv[2]))
try:
    sock.bind(("0.0.0.0", {PORT}))
    way.send(b"bound")
except PermissionError:
    way.send(b"refused")
way.recv(1)
"""


class Caller(NamedTuple):
    pid: int
    sup: Supervisor
    said: str  # by the kernel


def supervisor(made: socket.socket) -> Supervisor:
    parts = SimpleNamespace(guest=SimpleNamespace(socket=lambda family, kind: made.dup()))
    return cast("Supervisor", SimpleNamespace(parts=parts, held=SimpleNamespace(network=None)))


@contextmanager
def caller(unshared: int) -> Iterator[Caller]:
    """A process that made a network, then unshared other namespaces, and bound its socket in that network."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        subprocess.Popen(
            [sys.executable, "-c", INSIDE, str(its.fileno()), str(unshared)],
            pass_fds=[its.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
        ours,  # it waits for the end of that
    ):
        its.close()
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        if not fds:
            assert process.stderr is not None
            pytest.skip(f"no user namespaces: {process.stderr.read().strip()}")
        with socket.socket(fileno=fds[0]) as made:
            yield Caller(process.pid, supervisor(made), ours.recv(16).decode())


def test_privileged_ports() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    with socket.socket() as made:
        sup = supervisor(made)
        assert privileged.may_bind(sup, os.getpid(), max(first, 1024))
        nobody = 2**22 + 1
        assert privileged.may_bind(sup, nobody, PORT) is False
        assert privileged.may_bind(sup, nobody, 0)
        if first > PORT:
            status = Path("/proc/self/status").read_text().splitlines()
            (caps,) = [int(line.split()[1], 16) for line in status if line.startswith("CapEff:")]
            assert privileged.may_bind(sup, os.getpid(), PORT) is (
                os.geteuid() == 0 and bool(caps >> 10 & 1)
            )


@pytest.mark.parametrize(
    ("unshared", "said"),
    [(0, "bound"), (CLONE_NEWUSER, "refused"), (CLONE_NEWUSER | CLONE_NEWNET, "refused")],
    ids=["own", "another-user", "another-network"],
)
def test_who_rules_a_network_is_who_the_kernel_lets_bind(unshared: int, said: str) -> None:
    """In a user namespace that it makes itself anybody has every capability: it counts where the network's does."""
    with caller(unshared) as who:
        network = privileged.network_of(who.sup.parts.guest)
        assert None not in network
        assert who.said == said
        assert privileged.rules(who.pid, network) is (said == "bound")
        assert privileged.may_bind_inside(who.sup, who.pid, PORT) is (said == "bound")
        assert privileged.may_bind(who.sup, who.pid, PORT) is (said == "bound" and not os.geteuid())
    assert privileged.rules(who.pid, network) is False  # it has ended


def test_a_port_of_the_same_number_outside_is_the_hosts() -> None:
    with caller(0) as who:
        for port, may in ((PORT, os.geteuid() == 0), (8080, True)):
            published = [Publication(None, port, PORT)]
            assert privileged.may_bind_inside(who.sup, who.pid, PORT, published) is may
