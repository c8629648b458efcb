"""The machine that is measured, and the address of it that both sides use."""

from __future__ import annotations

import os
import platform
import socket
from ipaddress import IPv4Address
from pathlib import Path

from xensock import __version__

# Somewhere outside (RFC 5737, for documentation): asked of the routing table, never contacted.
OUTSIDE = ("198.51.100.1", 9)
LOOPBACK = IPv4Address("127.0.0.1")


def host_address() -> IPv4Address:
    """An address of this host that is neither loopback nor link-local; loopback if it has none.

    A guest's loopback is its own, so a measurement over the host's loopback needs a rule.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(OUTSIDE)
        except OSError:
            return LOOPBACK  # no route: the host is off line
        found = IPv4Address(sock.getsockname()[0])
    return LOOPBACK if found.is_loopback or found.is_link_local else found


def free_port(address: IPv4Address) -> int:
    """A TCP port that nothing listens on just now, as bind(2) to port 0 chooses it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind((str(address), 0))
        port: int = sock.getsockname()[1]
        return port


def facts(address: IPv4Address) -> dict[str, object]:
    """What a reader of the figures needs to know about the machine."""
    return {
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "processors": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "xensock": __version__,
        "address": str(address),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "uarch"):
            return value.strip()
    return platform.machine()
