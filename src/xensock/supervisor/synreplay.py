"""A guest's SYN, held back and answered later: packets as bytes, and the filters that hold and catch them. No IO.

Theory of operation
- The guest's socket connects to a listener of ours inside its own network namespace. A filter on that listener drops
  every first packet of a connection (SYN alone) that does not carry a secret mark: the guest's socket stays in
  SYN_SENT, as natively while the far side has not answered, and everything a program can ask of it is the kernel's.
- A packet socket keeps a copy. When the far side is up, the copy is sent again with the mark and the listener answers.
  When the far side refuses, the answer that a router or the far host would have sent is built here instead: RST
  (RFC 9293, 3.10.7.3) or an ICMP error (RFC 792, RFC 4443), by which the guest's kernel arrives at the same errno.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from xensock.calls.address import Endpoint

TCP, ICMP, ICMP6 = 6, 1, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16

_PASS, _DROP = 0x7FFFFFFF, 0
_MARK = 0xFFFFF000 + 20  # SKF_AD_OFF + SKF_AD_MARK
_LD_W, _LD_H, _LD_B, _LD_B_X, _LDX_IHL = 0x20, 0x28, 0x30, 0x50, 0xB1
_AND, _JEQ, _JSET, _RET = 0x54, 0x15, 0x45, 0x06

# What an ICMP error must say to give this errno to a socket in SYN_SENT (net/ipv4/icmp.c, net/ipv6/icmp.c). IPv4 has
# no code for EACCES; a firewall's "administratively prohibited" natively shows as EHOSTUNREACH there.
_UNREACHABLE4 = {
    errno.ENETUNREACH: 0,
    errno.EHOSTUNREACH: 1,
    errno.ENOPROTOOPT: 2,
    errno.EHOSTDOWN: 7,
    errno.ENONET: 8,
    errno.EACCES: 13,
    errno.EPERM: 13,
}
_UNREACHABLE6 = {
    errno.ENETUNREACH: 0,
    errno.EACCES: 1,
    errno.EPERM: 1,
    errno.EHOSTUNREACH: 3,
    errno.EHOSTDOWN: 3,
}


def _program(*code: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *line) for line in code)


def listener_filter(mark: int) -> bytes:
    """Classic BPF for a TCP listener, which sees the TCP header at offset 0: only a marked SYN passes."""
    return _program(
        (_LD_B, 0, 0, 13),
        (_AND, 0, 0, FIN | SYN | RST | ACK),
        (_JEQ, 0, 2, SYN),
        (_LD_W, 0, 0, _MARK),
        (_JEQ, 0, 1, mark),
        (_RET, 0, 0, _PASS),
        (_RET, 0, 0, _DROP),
    )


def capture_filter(version: int, mark: int) -> bytes:
    """Classic BPF for a packet socket of type SOCK_DGRAM, bound to IPv4 or IPv6: unmarked SYNs pass, whole."""
    flags = (
        (_AND, 0, 0, FIN | SYN | RST | ACK),
        (_JEQ, 0, 1, SYN),
        (_RET, 0, 0, 0xFFFF),
        (_RET, 0, 0, _DROP),
    )
    if version == 6:
        return _program(
            (_LD_W, 0, 0, _MARK),
            (_JEQ, 6, 0, mark),
            (_LD_B, 0, 0, 6),
            (_JEQ, 0, 4, TCP),
            (_LD_B, 0, 0, 53),
            *flags,
        )
    return _program(
        (_LD_W, 0, 0, _MARK),
        (_JEQ, 9, 0, mark),
        (_LD_B, 0, 0, 9),
        (_JEQ, 0, 7, TCP),
        (_LD_H, 0, 0, 6),
        (_JSET, 5, 0, 0x1FFF),  # a later fragment has no TCP header
        (_LDX_IHL, 0, 0, 0),
        (_LD_B_X, 0, 0, 13),
        *flags,
    )


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True, slots=True)
class Syn:
    """One captured SYN: the IP packet from its first header on."""

    packet: bytes
    source: Endpoint
    target: Endpoint
    header: int  # bytes of the IP header

    @classmethod
    def parse(cls, packet: bytes) -> Syn | None:
        """Read a captured packet; None when it is no whole TCP SYN over plain IPv4 or IPv6."""
        if len(packet) < 40:
            return None
        source: IPv4Address | IPv6Address
        target: IPv4Address | IPv6Address
        if packet[0] >> 4 == 4:
            header, protocol = (packet[0] & 15) * 4, packet[9]
            source, target = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        elif packet[0] >> 4 == 6:
            header, protocol = 40, packet[6]
            source, target = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
        else:
            return None
        if protocol != TCP or header < 20 or len(packet) < header + 20:
            return None
        if packet[header + 13] & (FIN | SYN | RST | ACK) != SYN:
            return None
        ports = struct.unpack_from("!HH", packet, header)
        return cls(packet, Endpoint(source, ports[0]), Endpoint(target, ports[1]), header)

    def again(self) -> bytes:
        """The packet to send once more. Loopback leaves checksums unfinished; a raw socket needs a true one."""
        segment = bytearray(self.packet[self.header :])
        segment[16:18] = b"\0\0"
        struct.pack_into("!H", segment, 16, self._sum(TCP, bytes(segment)))
        return self.packet[: self.header] + bytes(segment)

    def answer(self, number: int) -> bytes | None:
        """The packet that makes the guest's connect() fail with this errno; None for ETIMEDOUT, which silence makes.

        An errno that no packet can bring becomes ECONNREFUSED, so that no program waits for nothing.
        """
        if number == errno.ETIMEDOUT:
            return None
        code = (_UNREACHABLE4 if self.target.host.version == 4 else _UNREACHABLE6).get(number)
        return self._reset() if code is None else self._unreachable(code)

    def _reset(self) -> bytes:
        sport, dport, isn = struct.unpack_from("!HHI", self.packet, self.header)
        acknowledged = (isn + 1) & 0xFFFFFFFF
        segment = struct.pack(
            "!HHIIBBHHH", dport, sport, 0, acknowledged, 5 << 4, RST | ACK, 0, 0, 0
        )
        total = self._sum(TCP, segment)
        return self._back(TCP, segment[:16] + struct.pack("!H", total) + segment[18:])

    def _unreachable(self, code: int) -> bytes:
        if self.target.host.version == 4:
            message = struct.pack("!BBHI", 3, code, 0, 0) + self.packet[: self.header + 8]
            total = checksum(message)
            protocol = ICMP
        else:
            message = struct.pack("!BBHI", 1, code, 0, 0) + self.packet
            total = self._sum(ICMP6, message)
            protocol = ICMP6
        return self._back(protocol, message[:2] + struct.pack("!H", total) + message[4:])

    def _sum(self, protocol: int, payload: bytes) -> int:
        # The pseudo-header's sum is the same in both directions.
        ends = self.source.host.packed + self.target.host.packed
        if self.target.host.version == 4:
            return checksum(ends + struct.pack("!BBH", 0, protocol, len(payload)) + payload)
        return checksum(ends + struct.pack("!II", len(payload), protocol) + payload)

    def _back(self, protocol: int, payload: bytes) -> bytes:
        ends = self.target.host.packed + self.source.host.packed
        if self.target.host.version == 4:
            # The kernel fills in the header's checksum (raw(7)).
            head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
        else:
            head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
        return head + ends + payload
