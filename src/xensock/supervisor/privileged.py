"""Ports below 1024: who may bind one, on the host's network and on the guest's own."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xensock.supervisor.guest import Guest
    from xensock.supervisor.publication import Publication
    from xensock.supervisor.supervisor import Supervisor

PRIVILEGED = 1024
CAP_NET_BIND_SERVICE = 10
NS_GET_USERNS = 0xB701  # ioctl_ns(2)
SIOCGSKNS = 0x894C

Namespace = tuple[int, int]  # st_dev, st_ino of its file (namespaces(7))


class Network(NamedTuple):
    """A network namespace, and the user namespace whose capabilities count in it (user_namespaces(7))."""

    itself: Namespace | None
    owner: Namespace | None


NOT_TOLD = Network(None, None)


def network_of(guest: Guest) -> Network:
    """The guest's; NOT_TOLD where the kernel tells us less."""
    try:
        with guest.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            itself = fcntl.ioctl(sock, SIOCGSKNS)
        try:
            owner = fcntl.ioctl(itself, NS_GET_USERNS)
            try:
                return Network(_name(os.fstat(itself)), _name(os.fstat(owner)))
            finally:
                os.close(owner)
        finally:
            os.close(itself)
    except OSError:
        return NOT_TOLD


def may_bind(sup: Supervisor, tid: int, port: int) -> bool:
    """Whether the caller natively could bind this port: not a privileged one, or with CAP_NET_BIND_SERVICE (ip(7)).

    With that of our own user namespace, or of the one that the guest's network belongs to: in one that it made itself
    anybody has every capability.
    """
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        if port >= first or not port:  # 0: any that is free, of those that are not
            return True
        if os.geteuid() or not _is_capable(tid):
            return False
        ours, its = _name(Path("/proc/self/ns/user").stat()), _user(tid)
        return its in (ours, _network(sup).owner)
    except OSError:
        return False


def may_bind_inside(
    sup: Supervisor, tid: int, port: int, published: Iterable[Publication] = ()
) -> bool:
    """Whether the caller may have a port of the guest's own network. The host has those `published`, or none."""
    if not 0 < port < PRIVILEGED or may_bind(sup, tid, port):
        return True
    # A group's ports have the same numbers on the host's loopback.
    low = any(each.port < PRIVILEGED for each in published)
    return not low and rules(tid, _network(sup))


def rules(tid: int, network: Network) -> bool:
    """Whether the caller is in that network, and has CAP_NET_BIND_SERVICE in the user namespace that it belongs to, as
    root of a rootless container has."""
    try:
        here = _name(Path(f"/proc/{tid}/ns/net").stat())
        return here == network.itself and _user(tid) == network.owner and _is_capable(tid)
    except OSError:  # it has ended
        return False


def _network(sup: Supervisor) -> Network:
    if sup.held.network is None:
        sup.held.network = network_of(sup.parts.guest)
    return sup.held.network


def _user(tid: int) -> Namespace:
    """Raises OSError."""
    return _name(Path(f"/proc/{tid}/ns/user").stat())


def _name(file: os.stat_result) -> Namespace:
    return file.st_dev, file.st_ino


def _is_capable(tid: int) -> bool:
    """Raises OSError."""
    text = Path(f"/proc/{tid}/status").read_text()
    effective = next(
        int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapEff:")
    )
    return bool(effective >> CAP_NET_BIND_SERVICE & 1)
