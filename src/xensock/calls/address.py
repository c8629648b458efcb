"""Internet endpoints, and their two other forms: `struct sockaddr` and Python's tuples.

Rules
- Lengths are judged as Linux judges them (net/ipv4/af_inet.c, net/ipv6/tcp_ipv6.c): 16 bytes for
  sockaddr_in (ip(7)), 24 for sockaddr_in6, which may lack the scope (RFC 2133); more is ignored.
- The bytes come from a guest: they are copied and validated here once, and never read again.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

IPAddress = IPv4Address | IPv6Address
MAPPED = bytes(10) + b"\xff\xff"
"""What IPv4 addresses have before them in IPv6 ones."""

_FAMILY = struct.Struct("=H")
_IN = struct.Struct("=H2s4s8x")
_IN6 = struct.Struct("=H2s4s16s")
_SCOPE = struct.Struct("=I")


# The kernel names the same few addresses of this host again and again; reading one costs 10 µs.
_ipv4 = lru_cache(maxsize=256)(IPv4Address)
_ipv6 = lru_cache(maxsize=256)(IPv6Address)


class AddressError(ValueError):
    """Bytes that are no internet address; `errno` is what the kernel would answer."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number


def packed(host: IPAddress) -> bytes:
    """16 bytes; IPv4 mapped (RFC 4291, 2.5.5.2)."""
    return host.packed if host.version == 6 else MAPPED + host.packed


def unpacked(raw: bytes) -> IPAddress:
    """The address that 16 bytes mean."""
    return IPv4Address(raw[12:]) if raw[:12] == MAPPED else IPv6Address(raw)


def family_of(raw: bytes) -> int:
    """The address family in a sockaddr, e.g. AF_UNSPEC, which connect(2) takes for "disconnect".

    Raises AddressError (EINVAL) when not even the family is there.
    """
    if len(raw) < _FAMILY.size:
        raise AddressError(f"{len(raw)} bytes are too short for a socket address", errno.EINVAL)
    family: int = _FAMILY.unpack_from(raw)[0]
    return family


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and port. `scope` is the interface index of an IPv6 link-local address;
    `flow` the IPv6 flow information (host byte order). Raises ValueError out of range."""

    host: IPAddress
    port: int
    scope: int = 0
    flow: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 0xFFFF:
            raise ValueError(f"port {self.port} is not in 0-65535")
        if (self.scope or self.flow) and self.host.version == 4:
            raise ValueError("an IPv4 endpoint has no scope and no flow information")
        if not (0 <= self.scope <= 0xFFFFFFFF and 0 <= self.flow <= 0xFFFFFFFF):
            raise ValueError("scope and flow information are 32-bit numbers")
        if self.host.version == 6 and self.host.scope_id is not None:
            raise ValueError("the scope belongs into the endpoint, as an interface index")

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6."""
        return socket.AF_INET if self.host.version == 4 else socket.AF_INET6

    @classmethod
    def from_sockaddr(cls, raw: bytes) -> Endpoint:
        """Read a struct sockaddr_in or sockaddr_in6.

        Raises AddressError: EINVAL when it is too short, EAFNOSUPPORT for another family.
        """
        family = family_of(raw)
        if family == socket.AF_INET:
            if len(raw) < _IN.size:
                raise AddressError(f"{len(raw)} bytes are too short for IPv4", errno.EINVAL)
            _, port, packed = _IN.unpack_from(raw)
            return cls(IPv4Address(packed), int.from_bytes(port, "big"))
        if family == socket.AF_INET6:
            if len(raw) < _IN6.size:
                raise AddressError(f"{len(raw)} bytes are too short for IPv6", errno.EINVAL)
            _, port, flow, packed = _IN6.unpack_from(raw)
            scope = 0
            if len(raw) >= _IN6.size + _SCOPE.size:
                scope = _SCOPE.unpack_from(raw, _IN6.size)[0]
            return cls(
                IPv6Address(packed),
                int.from_bytes(port, "big"),
                scope,
                int.from_bytes(flow, "big"),
            )
        raise AddressError(f"address family {family} is not an internet one", errno.EAFNOSUPPORT)

    def sockaddr(self) -> bytes:
        """The struct sockaddr_in (16 bytes) or sockaddr_in6 (28 bytes) for the kernel."""
        port = self.port.to_bytes(2, "big")
        if self.host.version == 4:
            return _IN.pack(socket.AF_INET, port, self.host.packed)
        head = _IN6.pack(socket.AF_INET6, port, self.flow.to_bytes(4, "big"), self.host.packed)
        return head + _SCOPE.pack(self.scope)

    @classmethod
    def from_python(cls, address: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
        """Read a tuple as `socket.getpeername` gives it. Raises ValueError for a host name."""
        host = address[0].partition("%")[0]  # Python writes fe80::1%eth0 and repeats it as index
        if ":" not in host:
            return cls(_ipv4(host), address[1])
        flow, scope = (address[2], address[3]) if len(address) == 4 else (0, 0)
        return cls(_ipv6(host), address[1], scope, flow)

    def as_python(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """The tuple for `socket.connect` and `socket.bind`."""
        if self.host.version == 4:
            return (str(self.host), self.port)
        return (str(self.host), self.port, self.flow, self.scope)

    def unmapped(self) -> Endpoint:
        """The IPv4 endpoint that ::ffff:a.b.c.d stands for (RFC 4291, 2.5.5.2), else itself."""
        if self.host.version == 6:
            inner = self.host.ipv4_mapped
            if inner is not None:
                return Endpoint(inner, self.port)
        return self

    def __str__(self) -> str:
        if self.host.version == 4:
            return f"{self.host}:{self.port}"
        return f"[{self.host}{f'%{self.scope}' if self.scope else ''}]:{self.port}"
