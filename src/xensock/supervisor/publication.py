"""``--publish [ADDR:]PORT[:GUESTPORT][/tcp|udp]``: a port of the guest that the world reaches at a port of the host."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from xensock.calls.call import Protocol

if TYPE_CHECKING:
    from xensock.calls.address import IPAddress


class PublishError(ValueError):
    """A publication that cannot be understood; `hint` says what would be."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.hint = (
            "write [ADDR:]PORT[:GUESTPORT][/udp], for example 3000, 8080:3000, 127.0.0.1:8080:3000, "
            "[::1]:8080:3000 or 5353/udp"
        )


@dataclass(frozen=True, slots=True)
class Publication:
    """`host` None: every address of the host. Ports 1..65535."""

    host: IPAddress | None
    port: int
    guest_port: int
    protocol: Protocol = Protocol.TCP

    @classmethod
    def parse(cls, text: str) -> Publication:
        """Raises PublishError."""
        host: IPAddress | None = None
        rest, slash, name = text.partition("/")
        if slash and name.lower() not in (Protocol.TCP, Protocol.UDP):
            raise PublishError(f"unknown protocol {name!r} in publication {text!r}")
        protocol = Protocol(name.lower()) if slash else Protocol.TCP
        if rest.startswith("["):
            literal, bracket, rest = rest[1:].partition("]:")
            if not bracket:
                raise PublishError(f"malformed publication {text!r}")
            host = _address(literal, text)
        elif "." in rest:
            literal, _, rest = rest.partition(":")
            host = _address(literal, text)
        parts = rest.split(":")
        if len(parts) > 2:
            raise PublishError(f"malformed publication {text!r}")
        ports = [_port(part, text) for part in parts]
        return cls(host, ports[0], ports[-1], protocol)


@dataclass(frozen=True, slots=True)
class Publications:
    """Those of a guest. `inner`: where its other ports are, if the world is not to reach them; None: the host's."""

    named: tuple[Publication, ...] = ()
    inner: IPAddress | None = None

    def of(self, port: int) -> tuple[Publication, ...]:
        """What shows a port of the guest's outside, if that is not simply the host's own port."""
        found = tuple(p for p in self.named if p.guest_port == port)
        if found or self.inner is None:
            return found
        return (Publication(self.inner, port, port),)


def _address(literal: str, text: str) -> IPAddress:
    try:
        return ip_address(literal)
    except ValueError:
        raise PublishError(f"{literal!r} in publication {text!r} is no address") from None


def _port(part: str, text: str) -> int:
    if not (part.isascii() and part.isdigit() and len(part) <= 5) or not 1 <= int(part) <= 65535:
        raise PublishError(f"{part!r} in publication {text!r} is no port")
    return int(part)
