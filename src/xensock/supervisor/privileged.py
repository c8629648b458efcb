"""Ports below 1024: who may bind one, on the host's network and on the guest's own."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

PRIVILEGED = 1024
CAP_NET_BIND_SERVICE = 10
NS_GET_USERNS = 0xB701  # ioctl_ns(2)


def may_bind(tid: int, port: int) -> bool:
    """Whether the caller natively could bind this port: not a privileged one, or with CAP_NET_BIND_SERVICE (ip(7))."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        capable = _is_capable(tid)
    except OSError:
        return False
    return port >= first or (os.geteuid() == 0 and capable)


def rules_its_network(tid: int) -> bool:
    """Whether the caller has CAP_NET_BIND_SERVICE in the user namespace of its network namespace, as root of a rootless
    container has (user_namespaces(7))."""
    try:
        with Path(f"/proc/{tid}/ns/net").open("rb") as network:
            owner = fcntl.ioctl(network, NS_GET_USERNS)
        try:
            same = os.path.samestat(os.fstat(owner), Path(f"/proc/{tid}/ns/user").stat())
        finally:
            os.close(owner)
        return same and _is_capable(tid)
    except OSError:  # it has ended, or belongs to a namespace above ours
        return False


def _is_capable(tid: int) -> bool:
    """Raises OSError."""
    text = Path(f"/proc/{tid}/status").read_text()
    effective = next(
        int(line.split()[1], 16) for line in text.splitlines() if line.startswith("CapEff:")
    )
    return bool(effective >> CAP_NET_BIND_SERVICE & 1)
