"""What records call datagrams: where they go, by which name, and by which way."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from xensock.calls.call import Protocol

if TYPE_CHECKING:
    from xensock.calls.address import Endpoint, IPAddress
    from xensock.calls.record import Path
    from xensock.policy.point import Point
    from xensock.stack.stacks import Stack


def path_of(carrier: Stack) -> Path:
    """What records call the way that datagrams take."""
    return "relay" if carrier.local else "ring"


def target(end: Endpoint, protocol: Protocol) -> str:
    """What records call it; an echo has no port."""
    if protocol != Protocol.ICMP:
        return f"{end}/{protocol}"
    return f"{end.host}/{protocol}" if end.host.version == 4 else f"[{end.host}]/{protocol}"


def name_of(point: Point, host: str) -> str | None:
    """The name by which the guest learned the address of such a text."""
    text = host.rpartition(":")[0] if host.count(":") == 1 or "]:" in host else host
    try:
        address: IPAddress = (
            IPv6Address(text.strip("[]")) if text.startswith("[") else IPv4Address(text)
        )
    except ValueError:
        return None
    return next(iter(point.names_of(address)), None)
